import type { JSX } from "preact";
import { useState } from "preact/hooks";
import * as f from "../format";
import { useSession } from "../hooks";
import { t } from "../i18n/i18n";
import { takesUsers } from "../model/figures";
import { AppLink, Pill } from "../parts/parts";
import { Spark } from "../parts/plot";
import { Table } from "../parts/table";

export function Applications(): JSX.Element {
  const { status, samples } = useSession();
  const [filter, setFilter] = useState("");
  const rows = Object.entries(status?.applications ?? {})
    .filter(([name]) => name.toLowerCase().includes(filter.toLowerCase()))
    .sort(([a], [b]) => (a < b ? -1 : 1)) // names are ASCII, and there may be ten thousand
    .map(([name, app]) => {
      const instances = Object.values(app.instances);
      return { name, app, last: samples.latest(name), all: instances.length, usable: instances.filter((i) => takesUsers(i.status)).length };
    });
  return (
    <>
      <div class="head">
        <h1>{t("nav.apps")}</h1>
        <input type="search" placeholder={t("list.filter")} aria-label={t("list.filter")} value={filter} onInput={(e) => setFilter(e.currentTarget.value)} />
      </div>
      <section class="card">
        <Table
          label={t("nav.apps")} rows={rows} id={(r) => r.name} empty={t(filter ? "list.nomatch" : "apps.none")}
          columns={[
            { name: t("col.application"), sort: (r) => r.name, cell: (r) => <b><AppLink name={r.name} /></b> },
            { name: t("col.usable"), sort: (r) => (r.all ? r.usable / r.all : -1), cell: (r) => <Pill tone={r.usable < r.all || r.all === 0 ? (r.usable ? "warn" : "bad") : "good"}>{`${r.usable} / ${r.all}`}</Pill> },
            { name: t("col.rate"), num: true, sort: (r) => r.last.requests ?? -1, cell: (r) => <div class="sparked"><Spark values={samples.series(r.name).requests} /><span>{f.rate(r.last.requests)}</span></div> },
            { name: t("col.errorrate"), num: true, sort: (r) => r.last.errors ?? -1, cell: (r) => <span class={r.last.errors ? "hot" : undefined}>{f.rate(r.last.errors)}</span> },
            { name: t("col.active"), num: true, sort: (r) => r.app.active, cell: (r) => f.count(r.app.active) },
            { name: t("col.first"), num: true, sort: (r) => r.last.first50 ?? -1, cell: (r) => f.ms(r.last.first50) },
            { name: t("col.requests"), num: true, sort: (r) => r.app.total_requests, cell: (r) => f.count(r.app.total_requests) },
            { name: t("col.errors"), num: true, sort: (r) => r.app.errors, cell: (r) => f.count(r.app.errors) },
            { name: t("col.tokens"), num: true, sort: (r) => r.app.usage?.total_tokens ?? -1, cell: (r) => f.count(r.app.usage?.total_tokens) },
            { name: t("col.cost"), num: true, cell: (r) => f.cost(r.app.usage) },
          ]}
        />
      </section>
    </>
  );
}
