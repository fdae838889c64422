// Figures and times in the reader's language.
import { locale, t } from "./i18n/i18n";
import type { Usage } from "./api/types";

type Figure = number | null | undefined;

const formats = new Map<string, Intl.NumberFormat>();

function format(options: Intl.NumberFormatOptions): Intl.NumberFormat {
  const key = locale() + JSON.stringify(options);
  const made = formats.get(key) ?? new Intl.NumberFormat(locale(), options);
  formats.set(key, made);
  return made;
}

/** What is not known is shown as such, not as zero. */
export const unknown = "–";
const known = (n: Figure): n is number => typeof n === "number" && Number.isFinite(n);

export function count(n: Figure): string {
  if (!known(n)) return unknown;
  return Math.abs(n) < 1e6 ? format({ maximumFractionDigits: 0 }).format(n) : format({ notation: "compact", maximumFractionDigits: 2 }).format(n);
}

export function rate(n: Figure): string {
  return known(n) ? format({ maximumFractionDigits: n < 10 ? 2 : n < 100 ? 1 : 0 }).format(n) : unknown;
}

export function ms(n: Figure): string {
  if (!known(n)) return unknown;
  return n >= 1000 ? `${format({ maximumFractionDigits: 2 }).format(n / 1000)} s` : `${format({ maximumFractionDigits: n < 10 ? 1 : 0 }).format(n)} ms`;
}

export function percent(x: Figure): string {
  return known(x) ? format({ style: "percent", maximumFractionDigits: 1 }).format(x) : unknown;
}

export function bytes(n: Figure): string {
  if (!known(n)) return unknown;
  let i = 0;
  for (; n >= 1024 && i < 5; i++) n /= 1024;
  return `${format({ maximumFractionDigits: n < 10 && i > 0 ? 1 : 0 }).format(n)} ${["B", "KiB", "MiB", "GiB", "TiB", "PiB"][i]}`;
}

export function throughput(n: Figure): string {
  return known(n) ? `${bytes(n)}/s` : unknown;
}

/** span writes seconds in its two largest units. */
export function span(seconds: Figure): string {
  if (!known(seconds)) return unknown;
  if (seconds < 1 && seconds > 0) return ms(seconds * 1000);
  const s = Math.max(0, Math.round(seconds));
  if (s < 60) return t("span.s", { s });
  if (s < 3600 && s % 60 === 0) return t("span.m", { m: s / 60 });
  if (s < 3600) return t("span.ms", { m: Math.floor(s / 60), s: s % 60 });
  if (s < 86400) return t("span.hm", { h: Math.floor(s / 3600), m: Math.floor((s % 3600) / 60) });
  return t("span.dh", { d: Math.floor(s / 86400), h: Math.floor((s % 86400) / 3600) });
}

function date(at: string | number, options: Intl.DateTimeFormatOptions): string {
  const d = new Date(at);
  return Number.isNaN(d.getTime()) ? unknown : d.toLocaleString(locale(), { ...options, hourCycle: "h23" });
}

export const time = (at: string): string => date(at, { dateStyle: "medium", timeStyle: "medium" });

/** moment is time without seconds, for where there is little room. */
export const moment = (at: string): string => date(at, { dateStyle: "medium", timeStyle: "short" });

/** clock is the time of the day. */
export const clock = (at: string | number): string => date(at, { hour: "2-digit", minute: "2-digit", second: "2-digit" });

/** hour is clock without seconds. */
export const hour = (at: number): string => date(at, { hour: "2-digit", minute: "2-digit" });

/** when is the time of the day, and for another day its date. */
export function when(at: string): string {
  return new Date(at).toDateString() === new Date().toDateString() ? clock(at) : moment(at);
}

export function cost(usage: Usage | undefined): string {
  const parts = Object.entries(usage?.cost ?? {}).map(([currency, amount]) => `${amount} ${currency}`);
  return parts.length ? parts.join(", ") : unknown;
}
