import { h } from "./dom.js";
import * as f from "./format.js";
import { t } from "./i18n.js";
import { sum, takesUsers } from "./model.js";
import { appLink, pill, section, table, tile, traffic, why } from "./parts.js";

export const overview = { render };

function render(ctx) {
  const { status } = ctx;
  const instances = Object.entries(status.applications).flatMap(([app, a]) => Object.entries(a.instances).map(([name, i]) => ({ app, name, ...i })));
  const ailing = instances.filter((i) => i.status !== "healthy");
  const last = ctx.samples.series().at(-1) ?? {};
  const { proxies, reporting, admins } = status.nodes;
  return h("div", null,
    h("h1", null, t("nav.overview")),
    !status.complete && h("div", { class: "banner", role: "status" }, t("overview.incomplete", { reporting, proxies })),
    h("div", { class: "tiles" },
      tile(t("tile.requests"), f.rate(last.requests), t("tile.total", { n: f.count(sum(Object.values(status.applications), (a) => a.total_requests)) })),
      tile(t("tile.errors"), f.rate(last.errors), t("tile.total", { n: f.count(sum(Object.values(status.applications), (a) => a.errors)) }), last.errors > 0 ? "bad" : ""),
      tile(t("tile.streams"), f.count(last.streams), t("tile.open", { n: f.count(last.active) })),
      tile(t("tile.instances"), `${instances.filter((i) => takesUsers(i.status)).length} / ${instances.length}`, t("tile.instances.note"), ailing.some((i) => !takesUsers(i.status) && i.state === "active") ? "bad" : ""),
      tile(t("tile.proxies"), `${reporting} / ${proxies}`, t("tile.admins", { n: admins }), reporting < proxies || proxies === 0 ? "bad" : ""),
      tile(t("tile.figures"), status.complete ? t("tile.complete") : t("tile.incomplete"), t("tile.revision", { n: status.revision }), status.complete ? "" : "bad")),
    traffic(ctx),
    h("p", { class: "dim small" }, t("plot.quantiles")),
    section(t("overview.ailing"),
      table(t("overview.ailing"),
        [{ name: t("col.application") }, { name: t("col.instance") }, { name: t("col.status") }, { name: t("col.why") }],
        ailing.slice(0, 100).map((i) => ({ key: `${i.app}/${i.name}`, cells: [appLink(i.app), i.name, pill("status", i.status), why(ctx, i.app, i.name, i)] })),
        t("overview.well")),
      ailing.length > 100 && h("p", { class: "dim" }, t("list.more", { n: ailing.length - 100 }))));
}
