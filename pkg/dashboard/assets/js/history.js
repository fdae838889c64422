import { h } from "./dom.js";
import { ask, toast } from "./dialog.js";
import * as f from "./format.js";
import { t, word } from "./i18n.js";
import { differences } from "./model.js";
import { changed, impact, section, table, tile } from "./parts.js";

export const history = { load: loadList, render: renderList };
export const change = { load: loadOne, render: renderOne };

const page = 50;

async function loadList(ctx, signal) {
  const { data } = ctx;
  const { items } = await ctx.api.get(`history?limit=${page}`, { signal });
  Object.assign(data, { entries: items, more: items.length === page });
}

async function older(ctx) {
  const { data } = ctx;
  try {
    const { items } = await ctx.api.get(`history?limit=${page}&before=${data.entries.at(-1).revision}`);
    Object.assign(data, { entries: [...data.entries, ...items], more: items.length === page });
  } catch (err) {
    ctx.fault = err;
  }
  ctx.redraw();
}

function renderList(ctx) {
  const { entries, more } = ctx.data;
  return h("div", null,
    h("h1", null, t("nav.history")),
    !entries && !ctx.fault && h("p", { class: "dim" }, t("wait")),
    entries && h("section", { class: "card" },
      table(t("nav.history"),
        [{ name: t("col.revision") }, { name: t("col.time") }, { name: t("col.who") }, { name: t("col.action") }, { name: t("col.note") }, { name: t("col.changes"), num: true }],
        entries.map((e) => ({ key: String(e.revision), cells: [h("a", { href: `#/change/${e.revision}` }, String(e.revision)), f.time(e.time), h("div", { class: "stack" }, h("span", null, e.who), h("span", { class: "dim small address" }, e.from)), word("action", e.action), e.note || "–", f.count(e.count)] })), t("history.none")),
      more && h("div", { class: "row" }, h("button", { type: "button", onclick: () => older(ctx) }, t("history.older")))));
}

async function loadOne(ctx, signal) {
  const { data } = ctx;
  data.entry = await ctx.api.get(`history/${encodeURIComponent(ctx.params[0])}`, { signal });
}

function renderOne(ctx) {
  const { entry } = ctx.data;
  return h("div", null,
    h("p", { class: "crumb" }, h("a", { href: "#/history" }, t("nav.history")), " / "),
    h("div", { class: "head" }, h("h1", null, t("events.revision", { n: ctx.params[0] })),
      entry && ctx.may("admin") && h("button", { type: "button", "data-key": "rollback", onclick: () => rollback(ctx, entry.revision) }, t("rollback.ask"))),
    entry && [
      h("div", { class: "tiles" }, tile(t("col.action"), word("action", entry.action), entry.note), tile(t("col.who"), entry.who, entry.from), tile(t("col.time"), f.clock(entry.time), f.time(entry.time)), tile(t("col.changes"), f.count(entry.count))),
      section(t("history.changes"), changes(entry.changes))]);
}

/** changes shows each object that changed, field by field. */
function changes(list) {
  if (list.length === 0) return h("p", { class: "dim" }, t("history.nothing"));
  return h("ul", { class: "changes" }, list.map((c) => h("li", { "data-key": `${c.kind}/${c.app ?? ""}/${c.name ?? ""}` },
    h("b", null, changed(c)),
    c.before && c.after
      ? h("dl", { class: "diff" }, differences(c.before, c.after).map(([path, before, after]) => [h("dt", { lang: "en" }, path), h("dd", { lang: "en" }, h("del", null, text(before)), h("span", { class: "arrow" }, " → "), h("ins", null, text(after)))]))
      : (c.before ?? c.after) && h("details", null, h("summary", null, t("history.object")), h("pre", { tabindex: "0" }, JSON.stringify(c.before ?? c.after, null, 2))))));
}

function text(value) {
  return value === undefined ? t("history.unset") : typeof value === "string" ? value : JSON.stringify(value);
}

/** rollback shows first what it would do, and does it only if nothing changed since. */
async function rollback(ctx, revision) {
  let plan;
  try {
    plan = await ctx.api.call("POST", `rollback/${revision}?dry_run=true`);
  } catch (err) {
    ctx.fault = err;
    return ctx.redraw();
  }
  if (plan.unchanged) return toast(t("rollback.same", { revision }));
  const done = await ask({
    title: t("rollback.title", { revision }), yes: t("rollback.do"), danger: true,
    body: [
      h("p", null, t("rollback.about", { revision, now: plan.revision })),
      names("rollback.created", plan.created), names("rollback.changed", plan.changed), names("rollback.deleted", plan.deleted),
      impact(plan),
      h("h3", null, t("history.changes")), changes(plan.changes)].filter(Boolean),
    act: () => ctx.api.call("POST", `rollback/${revision}`, { headers: { "If-Match": `"${plan.revision}"` } }),
  });
  if (!done) return;
  toast(t("rollback.done", { revision, now: done.revision }));
  location.hash = `#/change/${done.revision}`;
}

function names(key, list) {
  return list.length > 0 && h("p", null, t(key, { names: list.join(", ") }));
}
