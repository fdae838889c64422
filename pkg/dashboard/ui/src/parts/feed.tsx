import type { JSX } from "preact";
import type { Act } from "../api/types";
import * as f from "../format";
import { t, word } from "../i18n/i18n";
import type { FeedEvent } from "../session";
import { AppLink, Said, StatusPill, changed } from "./parts";

const mostChanges = 8;

/** Feed shows events, the newest first. */
export function Feed({ events }: { events: FeedEvent[] }): JSX.Element {
  if (events.length === 0) return <p class="dim">{t("events.none")}</p>;
  return (
    <ol class="feed">
      {events.map((e) => (
        <li key={e.n}>
          <time class="dim" dateTime={e.at} title={f.time(e.at)}>{f.clock(e.at)}</time>
          <span class="badge">{word("event", e.type)}</span>
          <div><Words event={e} /></div>
        </li>
      ))}
    </ol>
  );
}

function Words({ event }: { event: FeedEvent }): JSX.Element {
  switch (event.type) {
    case "configuration": {
      const { revision, changes } = event.data;
      return (
        <>
          <a href={`#/change/${revision}`}>{t("events.revision", { n: revision })}</a>
          <div class="dim">{changes.slice(0, mostChanges).map(changed).join(" · ")}{changes.length > mostChanges && ` · ${t("list.more", { n: changes.length - mostChanges })}`}</div>
        </>
      );
    }
    case "health": {
      const { app, instance, from, to, reason } = event.data;
      return <><AppLink name={app} />{` / ${instance} `}<StatusPill group="status" value={from} /> → <StatusPill group="status" value={to} />{reason && <div class="dim"><Said>{reason}</Said></div>}</>;
    }
    case "node": {
      const { id, role, action, revision, reason } = event.data;
      return (
        <>
          <b>{id}</b> ({word("noderole", role)}) {word("nodedid", action)}{revision ? ` · ${t("events.revision", { n: revision })}` : ""}
          {reason && <div class={failed.has(action) ? "hot" : "dim"}><Said>{reason}</Said></div>}
        </>
      );
    }
    case "node.accept": {
      const { who, node, revision } = event.data;
      return <>{t("event.accepted", { who, node })} · {t("events.revision", { n: revision })}<ActedFrom act={event.data} /></>;
    }
    case "export.secrets":
      return <>{t("event.exported", { who: event.data.who })}<ActedFrom act={event.data} /></>;
    case "reset":
      return <>{t("events.reset")}</>;
    default:
      // A newer server may tell more.
      return <Said>{JSON.stringify((event as FeedEvent).data)}</Said>;
  }
}

function ActedFrom({ act: { from, admin } }: { act: Act }): JSX.Element {
  return <div class="dim small">{t("event.from", { from, admin })}</div>;
}

const failed = new Set(["refused", "ring_differs", "disconnected"]);
