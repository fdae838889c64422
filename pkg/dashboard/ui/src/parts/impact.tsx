import type { JSX } from "preact";
import type { Plan } from "../api/types";
import * as f from "../format";
import { t, word } from "../i18n/i18n";
import { Bar } from "./share";

const mostFlows = 8;
const mostTouched = 20;

/** Impact shows who moves by a planned change; plan is the answer of a dry run. */
export function Impact({ plan }: { plan: Plan }): JSX.Element {
  const moves = Object.entries(plan.movements ?? {}).sort(([a], [b]) => a.localeCompare(b));
  return (
    <>
      <h3>{t("impact.moved")}</h3>
      {moves.length === 0 && <p class="dim">{t("impact.nobody")}</p>}
      {moves.map(([app, m]) => (
        <div key={app} class="movement">
          <div>{t(plan.deleted?.includes(app) ? "impact.lost" : "impact.share", { app, share: f.percent(m.share) })}</div>
          {m.recent_users && <div class="dim small">{t(m.recent_users.exact ? "impact.recent" : "impact.about", { moving: f.count(m.recent_users.moving), seen: f.count(m.recent_users.seen) })}</div>}
          <ul class="flows">
            {m.flows.slice(0, mostFlows).map((x) => (
              <li key={`${x.from} ${x.to}`}><span>{x.from || t("impact.none")} → {x.to || t("impact.none")}</span> <Bar share={x.share} /> <span class="num">{f.percent(x.share)}</span></li>
            ))}
          </ul>
          {m.flows.length > mostFlows && <div class="dim small">{t("list.more", { n: m.flows.length - mostFlows })}</div>}
        </div>
      ))}
    </>
  );
}

/** Touched shows the instances that are taken from their users, and what is open there. */
export function Touched({ plan }: { plan: Plan }): JSX.Element | null {
  const touched = plan.touched ?? [];
  if (touched.length === 0) return null;
  return (
    <>
      <h3>{t("impact.touched")}</h3>
      <ul>
        {touched.slice(0, mostTouched).map((x) => <li key={`${x.app}/${x.instance}`}>{t("impact.open", { name: `${x.app}/${x.instance}`, how: word("how", x.how), open: f.count(x.open), streams: f.count(x.streams) })}</li>)}
      </ul>
      {touched.length > mostTouched && <p class="dim">{t("list.more", { n: touched.length - mostTouched })}</p>}
    </>
  );
}
