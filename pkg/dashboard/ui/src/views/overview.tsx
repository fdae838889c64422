import type { JSX } from "preact";
import type { InstanceStatus, Status } from "../api/types";
import * as f from "../format";
import { useSession } from "../hooks";
import { t } from "../i18n/i18n";
import { sum, takesUsers } from "../model/figures";
import { Feed } from "../parts/feed";
import { AppLink, Section, StatusPill, Tile, Why } from "../parts/parts";
import { Table } from "../parts/table";
import { Traffic } from "../parts/traffic";

const mostAiling = 100;
const mostEvents = 8;

interface Named extends InstanceStatus {
  app: string;
  name: string;
}

/** survey counts all instances, and lists those that are not healthy. */
function survey(status: Status): { all: number; usable: number; ailing: Named[] } {
  const found = { all: 0, usable: 0, ailing: [] as Named[] };
  for (const [app, { instances }] of Object.entries(status.applications)) {
    for (const [name, i] of Object.entries(instances)) {
      found.all++;
      if (takesUsers(i.status)) found.usable++;
      if (i.status !== "healthy") found.ailing.push({ ...i, app, name });
    }
  }
  return found;
}

export function Overview(): JSX.Element {
  const { status, samples, events } = useSession();
  if (!status) return <p class="dim">{t("wait")}</p>;
  const last = samples.latest();
  const apps = Object.values(status.applications);
  const { proxies, reporting } = status.nodes;
  const { all, usable, ailing } = survey(status);
  return (
    <>
      <div class="head"><h1>{t("nav.overview")}</h1></div>
      {!status.complete && <div class="banner" role="status">{t("overview.incomplete", { reporting, proxies })}</div>}
      <div class="tiles card">
        <Tile label={t("tile.requests")} value={f.rate(last.requests)} note={t("tile.total", { n: f.count(sum(apps, (a) => a.total_requests)) })} />
        <Tile label={t("tile.errors")} value={f.rate(last.errors)} note={t("tile.total", { n: f.count(sum(apps, (a) => a.errors)) })} bad={(last.errors ?? 0) > 0} />
        <Tile label={t("tile.streams")} value={f.count(last.streams)} note={t("tile.open", { n: f.count(last.active) })} />
        <Tile label={t("tile.first")} value={f.ms(last.first50)} note={t("tile.p99", { n: f.ms(last.first99) })} />
        <Tile label={t("tile.instances")} value={`${usable} / ${all}`} note={t("tile.instances.note")} bad={ailing.some((i) => !takesUsers(i.status) && i.state === "active")} />
        <Tile label={t("tile.proxies")} value={`${reporting} / ${proxies}`} note={t(status.complete ? "tile.complete" : "tile.incomplete")} bad={reporting < proxies || proxies === 0} />
      </div>
      <Traffic />
      <div class="halves">
        <Section title={t("overview.ailing")}>
          <Table
            label={t("overview.ailing")} rows={ailing} most={mostAiling} id={(i) => `${i.app}/${i.name}`} empty={t("overview.well")}
            columns={[
              { name: t("col.instance"), cell: (i) => <div><AppLink name={i.app} />{` / ${i.name}`}</div> },
              { name: t("col.status"), cell: (i) => <StatusPill group="status" value={i.status} /> },
              { name: t("col.why"), cell: (i) => <div class="dim small why"><Why instance={i} /></div> },
            ]}
          />
        </Section>
        <Section title={t("overview.events")} aside={<a href="#/events">{t("events.all")}</a>}>
          <Feed events={events.slice(0, mostEvents)} />
        </Section>
      </div>
    </>
  );
}
