import type { JSX } from "preact";
import { path } from "../api/client";
import type { Node } from "../api/types";
import * as f from "../format";
import { useLoaded, useSession } from "../hooks";
import { t } from "../i18n/i18n";
import { ask, toast } from "../parts/dialog";
import { Reading, Said, Section, Stack, StatusPill } from "../parts/parts";
import { Table } from "../parts/table";
import type { Session } from "../session";

export function Nodes(): JSX.Element {
  const { status } = useSession();
  const nodes = useLoaded((api, signal) => api.all<Node>("nodes", { signal }), true);
  const rings = new Set(nodes.data?.map((n) => n.ring_checksum).filter(Boolean));
  return (
    <>
      <div class="head"><h1>{t("nav.nodes")}</h1></div>
      <Reading of={nodes} />
      {nodes.data && (
        <>
          <p class="dim">{t("nodes.about", { revision: status?.revision ?? f.unknown })} {rings.size > 0 && t(rings.size > 1 ? "nodes.differ" : "nodes.agree")}</p>
          <List title={t("nodes.proxy")} nodes={nodes.data.filter((n) => n.role === "proxy")} none={t("nodes.no.proxy")} />
          <List title={t("nodes.admin")} nodes={nodes.data.filter((n) => n.role === "admin")} none={t("nodes.no.admin")} />
        </>
      )}
    </>
  );
}

function List({ title, nodes, none }: { title: string; nodes: Node[]; none: string }): JSX.Element {
  const session = useSession();
  return (
    <Section title={title}>
      <Table
        label={title} rows={nodes} id={(n) => n.id} empty={none}
        columns={[
          {
            name: t("col.node"), cell: (n) => (
              <div>
                <b>{n.id}</b>
                {n.refused && <div class="hot small why">{t(n.held_back ? "nodes.held" : "nodes.refused", { revision: n.refused_revision ?? 0 })} <Said>{n.refused}</Said></div>}
              </div>
            ),
          },
          {
            name: t("col.state"), cell: (n) => (
              <div class="row tight">
                <StatusPill group="nodestate" value={n.state} />
                {n.held_back && session.may("admin") && <button type="button" aria-label={`${t("do.accept")} ${n.id}`} onClick={() => void accept(session, n)}>{t("do.accept")}</button>}
              </div>
            ),
          },
          { name: t("col.revision"), num: true, cell: (n) => <Stack lines={[n.config_revision, ...(n.ring_checksum ? [<span key="ring" class="dim small code">{n.ring_checksum}</span>] : [])]} /> },
          { name: t("col.lag"), num: true, cell: (n) => <span class={n.lag_seconds > 1 ? "hot" : undefined}>{f.span(n.lag_seconds)}</span> },
          { name: t("col.apply"), num: true, cell: (n) => f.ms(n.apply_ms) },
          { name: t("col.address"), cell: (n) => <span class="address">{n.address}</span> },
          { name: t("col.uptime"), num: true, cell: (n) => f.span(n.uptime_seconds) },
          { name: t("col.version"), cell: (n) => <span class="address">{n.version}</span> },
        ]}
      />
    </Section>
  );
}

/** accept names what the reader saw: what the proxy holds back by then may be something else, and the server says so. */
async function accept(session: Session, node: Node): Promise<void> {
  const done = await ask({
    title: t("ask.accept", { name: node.id }), yes: t("do.accept"), danger: true,
    body: (
      <>
        <p>{t("ask.accept.what", { name: node.id, now: node.config_revision, revision: node.refused_revision ?? 0 })}</p>
        <p class="hot"><Said>{node.refused}</Said></p>
      </>
    ),
    act: () => session.api!.call<Node>("POST", `${path("nodes", node.id)}/accept`, { body: { refused_revision: node.refused_revision, refused_epoch: node.refused_epoch } }),
  });
  if (!done) return;
  toast(t("done.accept", { name: node.id, revision: done.config_revision }));
  session.reload();
}
