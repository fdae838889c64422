import { h } from "./dom.js";
import * as f from "./format.js";
import { path } from "./api.js";
import { feed } from "./events.js";
import { t } from "./i18n.js";
import { sum, takesUsers } from "./model.js";
import { appLink, pill, section, table, tile, traffic, why } from "./parts.js";

export const overview = { render, poll };

const most = 100; // ailing instances that are listed
const asked = 8; // applications of which is read at a time why

/** poll reads what probes say of ailing instances, anew when their status changed. */
async function poll(ctx, signal) {
  const { data } = ctx;
  if (data.asking) return; // the server is slow
  const seen = (data.seen ??= new Map());
  const now = new Map();
  for (const i of ailing(everyInstance(ctx.status)).slice(0, most)) now.set(i.app, `${now.get(i.app) ?? ""} ${i.name} ${i.status} ${i.since}`);
  const unknown = [...now].filter(([app, how]) => seen.get(app)?.how !== how).slice(0, asked);
  data.asking = unknown.length > 0;
  for (const [app, how] of unknown) {
    try {
      const list = await ctx.api.all(`${path("apps", app)}/instances`, { signal });
      seen.set(app, { how, probes: new Map(list.map((i) => [i.name, i.probe])) });
    } catch {
      if (signal.aborted) break;
      seen.set(app, { how, probes: new Map() }); // the page does without
    }
  }
  data.asking = false;
  if (unknown.length > 0) ctx.redraw();
}

function everyInstance(status) {
  return Object.entries(status.applications).flatMap(([app, a]) => Object.entries(a.instances).map(([name, i]) => ({ app, name, ...i })));
}

function ailing(instances) {
  return instances.filter((i) => i.status !== "healthy");
}

function render(ctx) {
  const { status } = ctx;
  const instances = everyInstance(status);
  const ill = ailing(instances);
  const last = ctx.samples.series().at(-1) ?? {};
  const { proxies, reporting, admins } = status.nodes;
  return h("div", null,
    h("h1", null, t("nav.overview")),
    !status.complete && h("div", { class: "banner", role: "status" }, t("overview.incomplete", { reporting, proxies })),
    h("div", { class: "tiles" },
      tile(t("tile.requests"), f.rate(last.requests), t("tile.total", { n: f.count(sum(Object.values(status.applications), (a) => a.total_requests)) })),
      tile(t("tile.errors"), f.rate(last.errors), t("tile.total", { n: f.count(sum(Object.values(status.applications), (a) => a.errors)) }), last.errors > 0 ? "bad" : ""),
      tile(t("tile.streams"), f.count(last.streams), t("tile.open", { n: f.count(last.active) })),
      tile(t("tile.instances"), `${instances.filter((i) => takesUsers(i.status)).length} / ${instances.length}`, t("tile.instances.note"), ill.some((i) => !takesUsers(i.status) && i.state === "active") ? "bad" : ""),
      tile(t("tile.proxies"), `${reporting} / ${proxies}`, t("tile.admins", { n: admins }), reporting < proxies || proxies === 0 ? "bad" : ""),
      tile(t("tile.figures"), status.complete ? t("tile.complete") : t("tile.incomplete"), t("tile.revision", { n: status.revision }), status.complete ? "" : "bad")),
    traffic(ctx),
    h("p", { class: "dim small" }, t("plot.quantiles")),
    section(t("overview.ailing"),
      table(t("overview.ailing"),
        [{ name: t("col.application") }, { name: t("col.instance") }, { name: t("col.status") }, { name: t("col.why") }],
        ill.slice(0, most).map((i) => ({ key: `${i.app}/${i.name}`, cells: [appLink(i.app), i.name, pill("status", i.status), h("div", { class: "dim small why" }, why(i, ctx.data.seen?.get(i.app)?.probes.get(i.name)))] })),
        t("overview.well")),
      ill.length > most && h("p", { class: "dim" }, t("list.more", { n: ill.length - most }))),
    section(t("overview.events"), feed(ctx.events.slice(0, 6)), h("p", null, h("a", { href: "#/events" }, t("events.all")))));
}
