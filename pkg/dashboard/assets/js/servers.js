import { h } from "./dom.js";
import * as f from "./format.js";
import { t } from "./i18n.js";
import { sum } from "./model.js";
import { appLink, pill, table } from "./parts.js";

export const servers = { load, render };

const most = 200; // rows; beyond that the filter is of more use than scrolling

/** load groups all declared instances by the address that serves them. */
async function load(ctx, signal) {
  const places = new Map();
  for (const app of await ctx.api.all("apps", { signal })) {
    for (const i of app.instances) {
      const at = i.url ?? `${i.host}:${i.port}`;
      if (!places.has(at)) places.set(at, []);
      places.get(at).push({ app: app.name, name: i.name });
    }
  }
  ctx.data.places = [...places].sort(([a], [b]) => a.localeCompare(b, undefined, { numeric: true }));
}

function render(ctx) {
  const { places } = ctx.data;
  const wanted = (ctx.data.filter ?? "").toLowerCase();
  const found = (places ?? []).filter(([at, list]) => at.toLowerCase().includes(wanted) || list.some((i) => `${i.app}/${i.name}`.toLowerCase().includes(wanted)));
  const filter = (e) => {
    ctx.data.filter = e.currentTarget.value;
    ctx.redraw();
  };
  return h("div", null,
    h("div", { class: "head" }, h("h1", null, t("nav.servers")),
      h("input", { type: "search", placeholder: t("servers.filter"), "aria-label": t("servers.filter"), oninput: filter })),
    h("p", { class: "dim" }, t("servers.about")),
    h("section", { class: "card" },
      !places && !ctx.fault && h("p", { class: "dim" }, t("wait")),
      places && table(t("nav.servers"),
        [{ name: t("col.address") }, { name: t("servers.runs") }, { name: t("col.active"), num: true }, { name: t("col.streams"), num: true }, { name: t("col.requests"), num: true }, { name: t("col.errors"), num: true }],
        found.slice(0, most).map(([at, list]) => row(ctx, at, list)), wanted ? t("list.nomatch") : t("app.noinstances")),
      found.length > most && h("p", { class: "dim" }, t("list.more", { n: found.length - most }))));
}

function row(ctx, at, list) {
  const known = list.map((i) => ctx.status?.applications[i.app]?.instances[i.name]).filter(Boolean);
  return { key: at, cells: [
    h("b", { class: "address" }, at),
    h("div", { class: "runs" }, list.slice(0, 50).map((i) => {
      const s = ctx.status?.applications[i.app]?.instances[i.name];
      return h("div", null, appLink(i.app), ` / ${i.name} `, s && pill("status", s.status));
    }), list.length > 50 && h("div", { class: "dim" }, t("list.more", { n: list.length - 50 }))),
    f.count(sum(known, (i) => i.active)), f.count(sum(known, (i) => i.streams)), f.count(sum(known, (i) => i.requests)), f.count(sum(known, (i) => i.errors))] };
}
