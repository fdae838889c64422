import type { JSX } from "preact";
import { useState } from "preact/hooks";
import type { Change as OneChange, HistoryChange, Plan } from "../api/types";
import * as f from "../format";
import { useLoaded, useSession } from "../hooks";
import type { Key } from "../i18n/i18n";
import { t, word } from "../i18n/i18n";
import { differences } from "../model/figures";
import { ask, toast } from "../parts/dialog";
import { Impact, Touched } from "../parts/impact";
import { Fault, Reading, Section, Tile, changed } from "../parts/parts";
import type { Session } from "../session";

/** Change shows one change of the history, field by field. */
export function Change({ param }: { param: string }): JSX.Element {
  const session = useSession();
  const entry = useLoaded((api, signal) => api.get<HistoryChange>(`history/${encodeURIComponent(param)}`, { signal }));
  const { data } = entry;
  const [fault, setFault] = useState<Error | null>(null);
  return (
    <>
      <p class="crumb"><a href="#/history">{t("nav.history")}</a> /</p>
      <div class="head">
        <h1>{t("events.revision", { n: param })}</h1>
        {data && session.may("admin") && <button type="button" onClick={() => void rollback(session, data.revision).then(() => setFault(null), setFault)}>{t("rollback.ask")}</button>}
      </div>
      {fault && <Fault error={fault} />}
      <Reading of={entry} />
      {data && (
        <>
          <div class="tiles card">
            <Tile label={t("col.action")} value={word("action", data.action)} note={data.note} />
            <Tile label={t("col.who")} value={data.who} note={data.from} />
            <Tile label={t("col.time")} value={f.clock(data.time)} note={f.moment(data.time)} />
            <Tile label={t("col.changes")} value={f.count(data.count)} />
          </div>
          <Section title={t("history.changes")}><Changes list={data.changes} /></Section>
        </>
      )}
    </>
  );
}

/** Changes shows each object that changed, field by field. */
function Changes({ list }: { list: OneChange[] }): JSX.Element {
  if (list.length === 0) return <p class="dim">{t("history.nothing")}</p>;
  return (
    <ul class="changes">
      {list.map((c) => (
        <li key={`${c.kind}/${c.app}/${c.name}`}><OneObject change={c} /></li>
      ))}
    </ul>
  );
}

/** OneObject shows the fields that changed, and folded the whole of what was created or deleted. */
function OneObject({ change }: { change: OneChange }): JSX.Element {
  const { before, after } = change;
  const whole = before ?? after;
  if (whole === undefined) return <b>{changed(change)}</b>;
  if (!before || !after) return <details><summary>{changed(change)}</summary><pre tabIndex={0} lang="en">{JSON.stringify(whole, null, 2)}</pre></details>;
  return (
    <>
      <b>{changed(change)}</b>
      <dl class="diff">
        {differences(before, after).map(([path, was, is]) => [
          <dt key={path} lang="en">{path}</dt>,
          <dd key={`${path} `} lang="en"><del>{text(was)}</del><span class="arrow"> → </span><ins>{text(is)}</ins></dd>,
        ])}
      </dl>
    </>
  );
}

function text(value: unknown): string {
  return value === undefined ? t("history.unset") : typeof value === "string" ? value : JSON.stringify(value);
}

/** rollback shows first what it would do, and does it only if nothing changed since. */
async function rollback(session: Session, revision: number): Promise<void> {
  const api = session.api!;
  const plan = await api.call<Plan>("POST", `rollback/${revision}?dry_run=true`);
  if (plan.unchanged) return toast(t("rollback.same", { revision }));
  const names = (key: Key, list: string[]): JSX.Element | false => list.length > 0 && <p>{t(key, { names: list.join(", ") })}</p>;
  const done = await ask({
    title: t("rollback.title", { revision }), yes: t("rollback.do"), danger: true,
    body: (
      <>
        <p>{t("rollback.about", { revision, now: plan.revision })}</p>
        {names("rollback.created", plan.created)}
        {names("rollback.changed", plan.changed)}
        {names("rollback.deleted", plan.deleted)}
        <Impact plan={plan} />
        <Touched plan={plan} />
        <h3>{t("history.changes")}</h3>
        <Changes list={plan.changes} />
      </>
    ),
    act: () => api.call<Plan>("POST", `rollback/${revision}`, { headers: { "If-Match": `"${plan.revision}"` } }),
  });
  if (!done) return;
  toast(t("rollback.done", { revision, now: done.revision }));
  location.hash = `#/change/${done.revision}`;
}
