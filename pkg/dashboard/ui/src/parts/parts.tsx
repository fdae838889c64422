// Pieces that several views are made of.
import type { ComponentChildren, JSX } from "preact";
import { Refusal, Unreachable, path } from "../api/client";
import type { Change, InstanceStatus } from "../api/types";
import * as f from "../format";
import type { Loaded } from "../hooks";
import { t, word } from "../i18n/i18n";

const tones: Record<string, string> = {
  healthy: "good", active: "good", draining: "warn", ejected: "bad", unhealthy: "bad", token_rejected: "bad",
  ok: "good", behind: "warn", held_back: "bad", refused: "bad", ring_differs: "bad", disconnected: "bad",
};
const signs: Record<string, string> = { good: "●", warn: "◐", bad: "▲", idle: "○" };

/** Pill shows a word: a sign beside the colour, for those who do not see colours apart. */
export function Pill({ tone, children }: { tone: string; children: ComponentChildren }): JSX.Element {
  return <span class={`pill ${tone}`}><span class="sign" aria-hidden="true">{signs[tone]}</span>{children}</span>;
}

/** StatusPill shows a status of the server, of an instance or of a node. */
export function StatusPill({ group, value }: { group: "status" | "nodestate"; value: string }): JSX.Element {
  return <Pill tone={tones[value] ?? "idle"}>{word(group, value)}</Pill>;
}

export function Tile({ label, value, note, bad }: { label: string; value: ComponentChildren; note?: ComponentChildren; bad?: boolean }): JSX.Element {
  return <div class={bad ? "tile bad" : "tile"}><span class="label">{label}</span><b>{value}</b>{note && <span class="note small">{note}</span>}</div>;
}

export function Section({ title, aside, children }: { title: string; aside?: ComponentChildren; children: ComponentChildren }): JSX.Element {
  return <section class="card"><div class="card-head"><h2>{title}</h2>{aside}</div>{children}</section>;
}

export function Stack({ lines }: { lines: ComponentChildren[] }): JSX.Element {
  return <div class="stack">{lines.length ? lines.map((line, i) => <span key={i}>{line}</span>) : f.unknown}</div>;
}

export function AppLink({ name }: { name: string }): JSX.Element {
  return <a href={`#/${path("app", name)}`}>{name}</a>;
}

/** Said marks what the server says in its own words, which are English whatever the page speaks. */
export function Said({ children }: { children: ComponentChildren }): JSX.Element {
  return <span lang="en">{children}</span>;
}

/** describe puts an error into the reader's words. */
export function describe(err: Error): string {
  if (err instanceof Unreachable) return t("error.unreachable");
  if (!(err instanceof Refusal)) return t("error.page", { error: err.message });
  const kind = word("error", String(err.status));
  return kind === String(err.status) ? t("error.status", { status: err.status }) : kind;
}

/** Fault says what went wrong: in the reader's language, then what the server says of it. */
export function Fault({ error, retry, instead }: { error: Error; retry?: () => void; instead?: string }): JSX.Element {
  return (
    <div class="fault" role="alert">
      <b>{instead ?? describe(error)}</b>
      {!instead && error instanceof Refusal && error.said.map((line) => <div key={line} lang="en">{line}</div>)}
      {retry && <div class="row"><button type="button" onClick={retry}>{t("error.retry")}</button></div>}
    </div>
  );
}

/** Reading stands where something will be once it was read, or why it was not. */
export function Reading<T>({ of }: { of: Loaded<T> }): JSX.Element | null {
  if (of.fault) return <Fault error={of.fault} retry={of.retry} />;
  return of.data === null ? <p class="dim" data-key="wait">{t("wait")}</p> : null;
}

/** Why puts in words what is known about the status of an instance. */
export function Why({ instance }: { instance: InstanceStatus }): JSX.Element {
  const { status, since, ejected_by: by, last_probe: probe, last_error: error } = instance;
  return (
    <>
      <div>{t("why.since", { time: f.when(since) })}</div>
      {by && by.length > 0 && <div class="hot">{t("why.ejected", { proxies: by.join(", ") })}</div>}
      {probe && status === "healthy" && <div>{t("why.probed", { time: f.when(probe.time), took: f.ms(probe.duration_ms) })}</div>}
      {probe && status !== "healthy" && <div>{t("why.probe", { by: probe.by, time: f.when(probe.time), took: f.ms(probe.duration_ms) })} <Said>{probe.found}</Said></div>}
      {error && <div>{t("why.error", { reason: word("reason", error.reason), time: f.when(error.time) })}</div>}
    </>
  );
}

/** changed names what a change did to what. */
export function changed(c: Change): string {
  const what = [c.app, c.name].filter(Boolean).join("/");
  return [word("kind", c.kind), what, word("did", c.action)].filter(Boolean).join(" ");
}
