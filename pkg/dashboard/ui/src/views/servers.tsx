import type { JSX } from "preact";
import { useState } from "preact/hooks";
import type { Application, InstanceStatus } from "../api/types";
import * as f from "../format";
import { useLoaded, useSession } from "../hooks";
import { t } from "../i18n/i18n";
import { address, sum } from "../model/figures";
import { AppLink, Reading, StatusPill } from "../parts/parts";
import { Table } from "../parts/table";

const mostRuns = 50;

interface Runs {
  app: string;
  name: string;
}

/** byAddress groups all declared instances by the address that serves them. */
function byAddress(apps: Application[]): [string, Runs[]][] {
  const places = new Map<string, Runs[]>();
  for (const app of apps) {
    for (const i of app.instances) {
      const at = address(i);
      places.set(at, [...(places.get(at) ?? []), { app: app.name, name: i.name }]);
    }
  }
  return [...places].sort(([a], [b]) => a.localeCompare(b, undefined, { numeric: true }));
}

export function Servers(): JSX.Element {
  const { status } = useSession();
  const [filter, setFilter] = useState("");
  const places = useLoaded(async (api, signal) => byAddress(await api.all<Application>("apps", { signal })));
  const wanted = filter.toLowerCase();
  const observed = (i: Runs): InstanceStatus | undefined => status?.applications[i.app]?.instances[i.name];
  const rows = (places.data ?? [])
    .filter(([at, list]) => at.toLowerCase().includes(wanted) || list.some((i) => `${i.app}/${i.name}`.toLowerCase().includes(wanted)))
    .map(([at, list]) => ({ at, list, known: list.map(observed).filter((i) => i !== undefined) }));
  const total = (known: InstanceStatus[], get: (i: InstanceStatus) => number): string => (known.length ? f.count(sum(known, get)) : f.unknown);
  return (
    <>
      <div class="head">
        <h1>{t("nav.servers")}</h1>
        <input type="search" placeholder={t("servers.filter")} aria-label={t("servers.filter")} value={filter} onInput={(e) => setFilter(e.currentTarget.value)} />
      </div>
      <p class="dim">{t("servers.about")}</p>
      <section class="card">
        <Reading of={places} />
        {places.data && (
          <Table
            label={t("nav.servers")} rows={rows} id={(r) => r.at} empty={t(wanted ? "list.nomatch" : "app.noinstances")}
            columns={[
              { name: t("col.address"), sort: (r) => r.at, cell: (r) => <b class="address">{r.at}</b> },
              {
                name: t("servers.runs"), cell: (r) => (
                  <div class="runs">
                    {r.list.slice(0, mostRuns).map((i) => {
                      const seen = observed(i);
                      return <div key={`${i.app}/${i.name}`}><span><AppLink name={i.app} />{` / ${i.name}`}</span> {seen && <StatusPill group="status" value={seen.status} />}</div>;
                    })}
                    {r.list.length > mostRuns && <div class="dim">{t("list.more", { n: r.list.length - mostRuns })}</div>}
                  </div>
                ),
              },
              { name: t("col.active"), num: true, sort: (r) => sum(r.known, (i) => i.active), cell: (r) => total(r.known, (i) => i.active) },
              { name: t("col.streams"), num: true, sort: (r) => sum(r.known, (i) => i.streams), cell: (r) => total(r.known, (i) => i.streams) },
              { name: t("col.requests"), num: true, sort: (r) => sum(r.known, (i) => i.requests), cell: (r) => total(r.known, (i) => i.requests) },
              { name: t("col.errors"), num: true, sort: (r) => sum(r.known, (i) => i.errors), cell: (r) => total(r.known, (i) => i.errors) },
            ]}
          />
        )}
      </section>
    </>
  );
}
