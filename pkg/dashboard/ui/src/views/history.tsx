import type { JSX } from "preact";
import { useState } from "preact/hooks";
import type { HistoryEntry } from "../api/types";
import * as f from "../format";
import { useLoaded, useSession } from "../hooks";
import { t, word } from "../i18n/i18n";
import { Fault, Reading, Stack } from "../parts/parts";
import { Table } from "../parts/table";

const page = 50;

interface Entries {
  items: HistoryEntry[];
  more: boolean;
}

export function History(): JSX.Element {
  const session = useSession();
  const entries = useLoaded<Entries>(async (api, signal) => {
    const { items } = await api.get<{ items: HistoryEntry[] }>(`history?limit=${page}`, { signal });
    return { items, more: items.length === page };
  });
  const { data } = entries;
  const [fault, setFault] = useState<Error | null>(null);
  const older = async (): Promise<void> => {
    const before = data?.items.at(-1)?.revision;
    if (!session.api || !data || before === undefined) return;
    try {
      const { items } = await session.api.get<{ items: HistoryEntry[] }>(`history?limit=${page}&before=${before}`);
      entries.set({ items: [...data.items, ...items], more: items.length === page });
      setFault(null);
    } catch (err) {
      if (!session.refuse(err)) setFault(err as Error);
    }
  };
  return (
    <>
      <div class="head"><h1>{t("nav.history")}</h1></div>
      <Reading of={entries} />
      {data && (
        <section class="card">
          <Table
            label={t("nav.history")} rows={data.items} id={(e) => String(e.revision)} empty={t("history.none")} most={Infinity}
            columns={[
              { name: t("col.revision"), cell: (e) => <a href={`#/change/${e.revision}`}>{e.revision}</a> },
              { name: t("col.time"), cell: (e) => <span class="num">{f.time(e.time)}</span> },
              { name: t("col.who"), cell: (e) => <Stack lines={[e.who, <span key="from" class="dim small address">{e.from}</span>]} /> },
              { name: t("col.action"), cell: (e) => word("action", e.action) },
              { name: t("col.note"), cell: (e) => e.note || f.unknown },
              { name: t("col.changes"), num: true, cell: (e) => f.count(e.count) },
            ]}
          />
          {data.more && <div class="row"><button type="button" onClick={() => void older()}>{t("history.older")}</button></div>}
          {fault && <Fault error={fault} />}
        </section>
      )}
    </>
  );
}
