import { h } from "./dom.js";
import * as f from "./format.js";
import { t } from "./i18n.js";
import { takesUsers } from "./model.js";
import { appLink, table } from "./parts.js";

export const applications = { render };

const most = 200; // rows; beyond that the filter is of more use than scrolling

function render(ctx) {
  const wanted = (ctx.data.filter ?? "").toLowerCase();
  const all = Object.entries(ctx.status.applications).filter(([name]) => name.toLowerCase().includes(wanted)).sort(([a], [b]) => a.localeCompare(b));
  const filter = (e) => {
    ctx.data.filter = e.currentTarget.value;
    ctx.redraw();
  };
  const columns = [
    { name: t("col.application") }, { name: t("col.usable") }, { name: t("col.rate"), num: true }, { name: t("col.errorrate"), num: true },
    { name: t("col.active"), num: true }, { name: t("col.requests"), num: true }, { name: t("col.errors"), num: true }, { name: t("col.tokens"), num: true }, { name: t("col.cost"), num: true }];
  return h("div", null,
    h("div", { class: "head" }, h("h1", null, t("nav.apps")),
      h("input", { type: "search", placeholder: t("list.filter"), "aria-label": t("list.filter"), oninput: filter })),
    h("section", { class: "card" }, table(t("nav.apps"), columns, all.slice(0, most).map(([name, a]) => {
      const instances = Object.values(a.instances);
      const usable = instances.filter((i) => takesUsers(i.status)).length;
      const last = ctx.samples.series(name).at(-1) ?? {};
      return { key: name, cells: [
        appLink(name), h("span", { class: usable < instances.length ? (usable ? "pill warn" : "pill bad") : "pill good" }, `${usable} / ${instances.length}`),
        f.rate(last.requests), f.rate(last.errors), f.count(a.active), f.count(a.total_requests), f.count(a.errors), f.count(a.usage?.total_tokens), f.cost(a.usage)] };
    }), wanted ? t("list.nomatch") : t("apps.none")),
    all.length > most && h("p", { class: "dim" }, t("list.more", { n: all.length - most }))));
}
