import type { JSX } from "preact";
import { useState } from "preact/hooks";
import { useSession } from "../hooks";
import { t } from "../i18n/i18n";
import { Feed } from "../parts/feed";
import { Pill } from "../parts/parts";

const kinds = ["configuration", "health", "node", "node.accept", "export.secrets", "reset"] as const;

export function Events(): JSX.Element {
  const { events, following } = useSession();
  const [only, setOnly] = useState("");
  return (
    <>
      <div class="head">
        <h1>{t("nav.events")}</h1>
        <span role="status"><Pill tone={following ? "good" : "bad"}>{t(following ? "state.live" : "state.silent")}</Pill></span>
        <select aria-label={t("events.only")} value={only} onChange={(e) => setOnly(e.currentTarget.value)}>
          <option value="">{t("events.all")}</option>
          {kinds.map((k) => <option key={k} value={k}>{t(`event.${k}`)}</option>)}
        </select>
      </div>
      <section class="card"><Feed events={events.filter((e) => !only || e.type === only)} /></section>
    </>
  );
}
