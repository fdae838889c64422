import { locale, t } from "./i18n.js";

const formats = new Map();

function format(options) {
  const key = locale() + JSON.stringify(options);
  if (!formats.has(key)) formats.set(key, new Intl.NumberFormat(locale(), options));
  return formats.get(key);
}

/** What is not known is shown as such, not as zero. */
const unknown = "–";
const known = (n) => typeof n === "number" && Number.isFinite(n);

export function count(n) {
  if (!known(n)) return unknown;
  return Math.abs(n) < 1e6 ? format({ maximumFractionDigits: 0 }).format(n) : format({ notation: "compact", maximumFractionDigits: 2 }).format(n);
}

export function rate(n) {
  return known(n) ? format({ maximumFractionDigits: n < 10 ? 2 : n < 100 ? 1 : 0 }).format(n) : unknown;
}

export function ms(n) {
  if (!known(n)) return unknown;
  return n >= 1000 ? `${format({ maximumFractionDigits: 2 }).format(n / 1000)} s` : `${format({ maximumFractionDigits: n < 10 ? 1 : 0 }).format(n)} ms`;
}

export function percent(x) {
  return known(x) ? format({ style: "percent", maximumFractionDigits: 1 }).format(x) : unknown;
}

export function bytes(n) {
  if (!known(n)) return unknown;
  let i = 0;
  for (; n >= 1024 && i < 5; i++) n /= 1024;
  return `${format({ maximumFractionDigits: n < 10 && i > 0 ? 1 : 0 }).format(n)} ${["B", "KiB", "MiB", "GiB", "TiB", "PiB"][i]}`;
}

/** span writes seconds in its two largest units. */
export function span(seconds) {
  if (!known(seconds)) return unknown;
  if (seconds < 1 && seconds > 0) return ms(seconds * 1000);
  const s = Math.max(0, Math.round(seconds));
  if (s < 60) return t("span.s", { s });
  if (s < 3600 && s % 60 === 0) return t("span.m", { m: s / 60 });
  if (s < 3600) return t("span.ms", { m: Math.floor(s / 60), s: s % 60 });
  if (s < 86400) return t("span.hm", { h: Math.floor(s / 3600), m: Math.floor((s % 3600) / 60) });
  return t("span.dh", { d: Math.floor(s / 86400), h: Math.floor((s % 86400) / 3600) });
}

export function time(text) {
  const d = new Date(text);
  return isNaN(d) ? unknown : d.toLocaleString(locale(), { dateStyle: "medium", timeStyle: "medium" });
}

/** moment is time without seconds, for where there is little room. */
export function moment(text) {
  const d = new Date(text);
  return isNaN(d) ? unknown : d.toLocaleString(locale(), { dateStyle: "medium", timeStyle: "short" });
}

export function clock(at) {
  return new Date(at).toLocaleTimeString(locale());
}

export function cost(usage) {
  const parts = Object.entries(usage?.cost ?? {}).map(([currency, amount]) => `${amount} ${currency}`);
  return parts.length ? parts.join(", ") : unknown;
}
