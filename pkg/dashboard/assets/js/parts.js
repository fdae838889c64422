// Pieces that several views are made of.

import { h } from "./dom.js";
import * as f from "./format.js";
import { t, word } from "./i18n.js";
import { chart } from "./chart.js";
import { path } from "./api.js";

const tones = {
  healthy: "good", active: "good", unknown: "idle", draining: "warn", ejected: "bad", unhealthy: "bad", token_rejected: "bad", disabled: "idle",
  ok: "good", behind: "warn", held_back: "bad", refused: "bad", ring_differs: "bad", disconnected: "bad",
};
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
  return h("section", { class: "card", "data-key": title }, h("h2", null, title), content);
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

/** said marks what the server says in its own words, which are English whatever the page speaks. */
export function said(text) {
  return h("span", { lang: "en" }, text);
}

/** blame draws what went wrong: in the reader's language, then what the server says of it. */
export function blame(err) {
  return [h("b", null, err.message), ...(err.said ?? []).map((line) => h("div", { lang: "en" }, line))];
}

/** why puts in words what is known about the status of an instance. probe is what the API says of it, where that was asked. */
export function why(instance, probe) {
  const lines = [t("why.since", { time: f.moment(instance.since) })];
  if (instance.status === "ejected") lines.push(t("why.ejected"));
  if (probe?.reason) lines.push([t("why.probe", { by: probe.by ?? "" }), " ", said(probe.reason)]);
  if (instance.last_error) lines.push(t("why.error", { reason: word("reason", instance.last_error.reason), time: f.moment(instance.last_error.time) }));
  return lines.map((l) => h("div", null, l));
}

/** impact draws who moves by a planned change, and what is open there; plan is the answer of a dry run. */
export function impact(plan) {
  const moves = Object.entries(plan.movements).sort(([a], [b]) => a.localeCompare(b));
  return [
    h("h3", null, t("impact.moved")),
    moves.length === 0 && h("p", { class: "dim" }, t("impact.nobody")),
    moves.length > 0 && h("ul", null, moves.map(([app, m]) => h("li", null,
      t(plan.deleted.includes(app) ? "impact.lost" : "impact.share", { app, share: f.percent(m.share) }),
      m.recent_users && h("div", { class: "dim small" }, t(m.recent_users.exact ? "impact.recent" : "impact.about", { moving: f.count(m.recent_users.moving), seen: f.count(m.recent_users.seen) })),
      m.flows.length > 0 && h("div", { class: "dim small" }, m.flows.slice(0, 8).map((x) => `${x.from || t("impact.none")} → ${x.to || t("impact.none")} ${f.percent(x.share)}`).join(" · "), m.flows.length > 8 ? ` · ${t("list.more", { n: m.flows.length - 8 })}` : "")))),
    plan.touched.length > 0 && [
      h("h3", null, t("impact.touched")),
      h("ul", null, plan.touched.slice(0, 20).map((x) => h("li", null, t("impact.open", { name: `${x.app}/${x.instance}`, how: word("how", x.how), open: f.count(x.open), streams: f.count(x.streams) })))),
      plan.touched.length > 20 && h("p", { class: "dim" }, t("list.more", { n: plan.touched.length - 20 }))]];
}

/** changed names what a change did to what. */
export function changed(c) {
  const what = c.app ? (c.name ? `${c.app}/${c.name}` : c.app) : "";
  return [t(`kind.${c.kind}`), what, word("did", c.action)].filter(Boolean).join(" ");
}
