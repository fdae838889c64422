import { h } from "./dom.js";
import * as f from "./format.js";
import { t } from "./i18n.js";
import { ask, toast } from "./dialog.js";
import { path } from "./api.js";
import { pill, said, table } from "./parts.js";

export const nodes = { load, render, poll };

async function load(ctx, signal) {
  ctx.data.nodes = await ctx.api.all("nodes", { signal });
}

/** poll keeps the list as fresh as the Status document; a failure shows there. */
async function poll(ctx, signal) {
  const { data } = ctx;
  try {
    data.nodes = await ctx.api.all("nodes", { signal });
    ctx.redraw();
  } catch { /* the next one tells */ }
}

function render(ctx) {
  const all = ctx.data.nodes;
  if (!all) return h("div", null, h("h1", null, t("nav.nodes")), !ctx.fault && h("p", { class: "dim" }, t("wait")));
  const columns = [{ name: t("col.node") }, { name: t("col.state") }, { name: t("col.address") }, { name: t("col.revision"), num: true }, { name: t("col.lag"), num: true }, { name: t("col.apply"), num: true }, { name: t("col.uptime"), num: true }, { name: t("col.version") }];
  const list = (role) => h("section", { class: "card", "data-key": role }, h("h2", null, t(`nodes.${role}`)),
    table(t(`nodes.${role}`), columns, all.filter((n) => n.role === role).map((n) => ({ key: n.id, cells: [
      h("div", null, h("b", null, n.id), n.refused && h("div", { class: "fault" }, t(n.held_back ? "nodes.held" : "nodes.refused", { revision: n.refused_revision ?? 0 }), " ", said(n.refused))),
      h("div", { class: "row tight" }, pill("nodestate", n.state), n.held_back && ctx.may("admin") && h("button", { type: "button", "data-key": "accept", "aria-label": `${t("do.accept")} ${n.id}`, onclick: () => accept(ctx, n) }, t("do.accept"))),
      h("span", { class: "address" }, n.address), h("div", { class: "stack" }, h("span", null, String(n.config_revision)), n.ring_checksum && h("span", { class: "dim small" }, n.ring_checksum)),
      h("span", { class: n.lag_seconds > 1 ? "hot" : null }, f.span(n.lag_seconds)), n.apply_ms === undefined ? "–" : f.ms(n.apply_ms), f.span(n.uptime_seconds), n.version] })), t(`nodes.no.${role}`)));
  const rings = new Set(all.filter((n) => n.ring_checksum).map((n) => n.ring_checksum));
  return h("div", null,
    h("h1", null, t("nav.nodes")),
    h("p", { class: "dim" }, t("nodes.about", { revision: ctx.status?.revision ?? "–" }), " ", rings.size > 1 ? t("nodes.differ") : rings.size === 1 ? t("nodes.agree") : ""),
    list("proxy"), list("admin"));
}

/** accept names what the reader saw: what the proxy holds back by then may be something else, and the server says so. */
async function accept(ctx, node) {
  const done = await ask({
    title: t("ask.accept", { name: node.id }), yes: t("do.accept"), danger: true,
    body: [
      h("p", null, t("ask.accept.what", { name: node.id, now: node.config_revision, revision: node.refused_revision ?? 0 })),
      h("p", { class: "fault" }, said(node.refused))],
    act: () => ctx.api.call("POST", `${path("nodes", node.id)}/accept`, { body: { refused_revision: node.refused_revision, refused_epoch: node.refused_epoch } }),
  });
  if (!done) return;
  toast(t("done.accept", { name: node.id, revision: done.config_revision }));
  ctx.reload();
}
