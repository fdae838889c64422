import { h } from "./dom.js";
import * as f from "./format.js";
import { t, word } from "./i18n.js";
import { appLink, changed, pill, said } from "./parts.js";

export const events = { render };

const kinds = ["configuration", "health", "node", "reset"];

function render(ctx) {
  const { only } = ctx.data;
  const list = ctx.events.filter((e) => !only || e.type === only);
  const pick = (e) => {
    ctx.data.only = e.currentTarget.value;
    ctx.redraw();
  };
  return h("div", null,
    h("div", { class: "head" }, h("h1", null, t("nav.events")),
      h("span", { class: `pill ${ctx.following ? "good" : "bad"}`, role: "status" }, h("span", { "aria-hidden": "true" }, ctx.following ? "●" : "▲"), t(ctx.following ? "events.live" : "events.broken")),
      h("select", { "aria-label": t("events.only"), onchange: pick }, ["", ...kinds].map((k) => h("option", { value: k, selected: (only ?? "") === k }, k ? t(`event.${k}`) : t("events.all"))))),
    h("section", { class: "card" },
      feed(list)));
}

/** feed draws events, the newest first. */
export function feed(list) {
  if (list.length === 0) return h("p", { class: "dim" }, t("events.none"));
  return h("ol", { class: "feed" }, list.map((e) => h("li", { "data-key": String(e.n) },
    h("time", { class: "dim", datetime: e.at, title: f.time(e.at) }, f.clock(e.at)), h("span", { class: "badge" }, word("event", e.type)), h("div", null, words(e)))));
}

function words({ type, data }) {
  switch (type) {
    case "configuration":
      return [h("a", { href: `#/change/${data.revision}` }, t("events.revision", { n: data.revision })), h("div", { class: "dim" }, data.changes.slice(0, 8).map(changed).join(" · "), data.changes.length > 8 ? ` · ${t("list.more", { n: data.changes.length - 8 })}` : "")];
    case "health":
      return [appLink(data.app), ` / ${data.instance} `, pill("status", data.from), " → ", pill("status", data.to), data.reason && h("div", { class: "dim" }, said(data.reason))];
    case "node":
      return [h("b", null, data.id), ` (${word("noderole", data.role)}) `, word("nodedid", data.action), data.revision ? ` · ${t("events.revision", { n: data.revision })}` : "", data.reason && h("div", { class: "fault" }, said(data.reason))];
    case "reset":
      return t("events.reset");
  }
  return JSON.stringify(data);
}
