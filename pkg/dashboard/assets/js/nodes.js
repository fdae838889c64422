import { h } from "./dom.js";
import * as f from "./format.js";
import { t } from "./i18n.js";
import { table } from "./parts.js";

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
  const columns = [{ name: t("col.node") }, { name: t("col.link") }, { name: t("col.address") }, { name: t("col.revision"), num: true }, { name: t("col.lag"), num: true }, { name: t("col.apply"), num: true }, { name: t("col.uptime"), num: true }, { name: t("col.version") }];
  const list = (role) => h("section", { class: "card", "data-key": role }, h("h2", null, t(`nodes.${role}`)),
    table(t(`nodes.${role}`), columns, all.filter((n) => n.role === role).map((n) => ({ key: n.id, cells: [
      h("div", null, h("b", null, n.id), n.refused && h("div", { class: "fault" }, t("nodes.refused", { revision: n.refused_revision ?? "", reason: n.refused }))),
      h("span", { class: `pill ${n.connected ? "good" : "bad"}` }, h("span", { "aria-hidden": "true" }, n.connected ? "●" : "▲"), t(n.connected ? "nodes.connected" : "nodes.disconnected")),
      h("span", { class: "address" }, n.address), String(n.config_revision),
      h("span", { class: n.lag_seconds > 1 ? "hot" : null }, f.span(n.lag_seconds)), n.apply_ms === undefined ? "–" : f.ms(n.apply_ms), f.span(n.uptime_seconds), n.version] })), t(`nodes.no.${role}`)));
  const rings = new Set(all.filter((n) => n.ring_checksum).map((n) => n.ring_checksum));
  return h("div", null,
    h("h1", null, t("nav.nodes")),
    h("p", { class: "dim" }, t("nodes.about", { revision: ctx.status?.revision ?? "–" }), " ", rings.size > 1 ? t("nodes.differ") : rings.size === 1 ? t("nodes.agree") : ""),
    list("proxy"), list("admin"));
}
