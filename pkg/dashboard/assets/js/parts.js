// Pieces that several views are made of.

import { h } from "./dom.js";
import * as f from "./format.js";
import { t, word } from "./i18n.js";
import { chart } from "./chart.js";
import { path } from "./api.js";

const tones = { healthy: "good", active: "good", unknown: "idle", draining: "warn", ejected: "bad", unhealthy: "bad", token_rejected: "bad", disabled: "idle" };
const signs = { good: "●", warn: "◐", bad: "▲", idle: "○" };

/** pill shows a status: a sign beside the colour, for those who do not see colours apart. */
export function pill(group, value) {
  const tone = tones[value] ?? "idle";
  return h("span", { class: `pill ${tone}` }, h("span", { "aria-hidden": "true" }, signs[tone]), word(group, value));
}

/** table: columns [{name, num}], rows [{key, cells}]. On a narrow page each row becomes a card, its cells labelled. */
export function table(label, columns, rows, empty) {
  if (rows.length === 0) return h("p", { class: "dim" }, empty);
  return h("div", { class: "scroll" },
    h("table", { "aria-label": label },
      h("thead", null, h("tr", null, columns.map((c) => h("th", { scope: "col", class: c.num && "num" }, c.name)))),
      h("tbody", null, rows.map((r) => h("tr", { "data-key": r.key }, r.cells.map((cell, i) => h("td", { class: columns[i].num && "num", "data-label": columns[i].name }, cell)))))));
}

export function tile(label, value, note, tone) {
  return h("div", { class: `tile card ${tone ?? ""}` }, h("span", { class: "dim" }, label), h("b", null, value), note && h("span", { class: "dim small" }, note));
}

export function section(title, ...content) {
  return h("section", { class: "card" }, h("h2", null, title), content);
}

/** traffic draws the live plots of the application, or of the whole. */
export function traffic(ctx, app) {
  const samples = ctx.samples.series(app);
  const id = app ?? "all";
  const plot = (key, title, lines, format, note) => chart({ id: `${key}-${id}`, title, note, samples, lines, format, redraw: ctx.redraw });
  return h("div", { class: "charts" },
    plot("requests", t("plot.requests"), [{ key: "requests" }], f.rate),
    plot("errors", t("plot.errors"), [{ key: "errors" }], f.rate),
    plot("open", t("plot.open"), [{ key: "active", name: t("plot.all") }, { key: "streams", name: t("plot.streams") }], f.count),
    plot("latency", t("plot.latency"), [{ key: "p50", name: "p50" }, { key: "p99", name: "p99" }], f.ms),
    plot("first", t("plot.first"), [{ key: "first50", name: "p50" }, { key: "first99", name: "p99" }], f.ms));
}

export function appLink(name) {
  return h("a", { href: `#/${path("app", name)}` }, name);
}

/** why puts in words what is known about the status of an instance. */
export function why(ctx, app, name, instance) {
  const parts = [t("why.since", { time: f.moment(instance.since) })];
  const seen = ctx.events.find((e) => e.type === "health" && e.data.app === app && e.data.instance === name);
  if (seen?.data.reason && seen.data.to === instance.status) parts.push(t("why.probe", { reason: seen.data.reason }));
  if (instance.last_error) parts.push(t("why.error", { reason: word("reason", instance.last_error.reason), time: f.moment(instance.last_error.time) }));
  return parts.join(" · ");
}

/** changed names what a change did to what. */
export function changed(c) {
  const what = c.app ? (c.name ? `${c.app}/${c.name}` : c.app) : "";
  return [t(`kind.${c.kind}`), what, word("did", c.action)].filter(Boolean).join(" ");
}
