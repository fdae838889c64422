import { h } from "./dom.js";
import { path } from "./api.js";
import { ring, shares } from "./chart.js";
import { ask, toast } from "./dialog.js";
import * as f from "./format.js";
import { t, word } from "./i18n.js";
import { byWeight, takesUsers } from "./model.js";
import { blame, pill, said, section, table, tile, traffic, why } from "./parts.js";

export const application = { load, render };

const sampleUsers = 400;
const previewUsers = 80;
const atOnce = 4; // browsers open 6 connections to one server; events and status need theirs

async function load(ctx, signal) {
  const { data } = ctx;
  const before = data.declared?.revision;
  const [declared, observed] = await Promise.all([
    ctx.api.get(path("apps", ctx.params[0]), { signal }),
    ctx.api.all(`${path("apps", ctx.params[0])}/instances`, { signal })]);
  Object.assign(data, { declared, observed: new Map(observed.map((i) => [i.name, i])) });
  // What was found out about placement holds for one declaration.
  if (before !== data.declared.revision) Object.assign(data, { counted: null, explained: null });
}

function render(ctx) {
  const name = ctx.params[0];
  const app = ctx.status.applications[name];
  const { declared } = ctx.data;
  if (!app) return h("div", null, h("h1", null, name), h("p", { class: "dim" }, t("app.gone")));
  const order = declared ? declared.instances.map((i) => i.name).filter((n) => n in app.instances) : Object.keys(app.instances);
  const rows = [...new Set([...order, ...Object.keys(app.instances)])];
  const columns = [
    { name: t("col.instance") }, { name: t("col.status") }, { name: t("col.state") }, { name: t("col.active"), num: true }, { name: t("col.streams"), num: true },
    { name: t("col.requests"), num: true }, { name: t("col.errors"), num: true }, { name: t("col.retries"), num: true }, { name: t("col.latency"), num: true },
    { name: t("col.first"), num: true }, { name: t("col.bytes"), num: true }, { name: t("col.usage"), num: true }, ...(ctx.may("operator") ? [{ name: t("col.actions") }] : [])];
  const labels = Object.entries(app.token_labels ?? {});
  return h("div", null,
    h("p", { class: "crumb" }, h("a", { href: "#/apps" }, t("nav.apps")), " / "),
    h("h1", null, name),
    h("div", { class: "tiles" },
      tile(t("tile.requests"), f.rate(ctx.samples.series(name).at(-1)?.requests), t("tile.total", { n: f.count(app.total_requests) })),
      tile(t("tile.errors"), f.rate(ctx.samples.series(name).at(-1)?.errors), t("tile.total", { n: f.count(app.errors) })),
      tile(t("tile.active"), f.count(app.active), t("tile.active.note")),
      tile(t("col.tokens"), f.count(app.usage?.total_tokens), app.usage ? t("app.answers", { n: f.count(app.usage.answers) }) : t("app.nousage")),
      tile(t("col.cost"), f.cost(app.usage), app.usage?.unpriced ? t("app.unpriced", { n: f.count(app.usage.unpriced) }) : "")),
    section(t("app.instances"),
      table(t("app.instances"), columns, rows.map((n) => ({ key: n, cells: cells(ctx, name, n, app.instances[n], declared) })), t("app.noinstances"))),
    declared && placement(ctx, declared),
    traffic(ctx, name),
    h("p", { class: "dim small" }, t("plot.quantiles")),
    labels.length > 0 && section(t("app.labels"), table(t("app.labels"),
      [{ name: t("col.label") }, { name: t("col.requests"), num: true }, { name: t("col.tokens"), num: true }, { name: t("col.cost"), num: true }],
      labels.map(([label, l]) => ({ key: `label-${label}`, cells: [label || t("app.nolabel"), f.count(l.requests), f.count(l.usage?.total_tokens), f.cost(l.usage)] })))),
    declared && h("details", { class: "card" }, h("summary", null, t("app.declaration")), h("pre", { tabindex: "0", lang: "en" }, JSON.stringify(declared, null, 2))));
}

function cells(ctx, app, name, i, declared) {
  const d = declared?.instances.find((x) => x.name === name);
  return [
    h("div", null, h("b", null, name), d && h("div", { class: "dim small address" }, d.url ?? `${d.host}:${d.port}`)),
    h("div", null, pill("status", i.status), h("div", { class: "dim small why" }, why(i, ctx.data.observed?.get(name)?.probe))),
    word("state", i.state), f.count(i.active), f.count(i.streams), f.count(i.requests),
    h("span", { class: i.errors ? "hot" : null }, f.count(i.errors)), f.count(i.retries),
    stacked(i.requests ? [`p50 ${f.ms(i.latency_ms.p50)}`, `p99 ${f.ms(i.latency_ms.p99)}`] : []),
    stacked(i.requests ? [`p50 ${f.ms(i.first_byte_ms.p50)}`, `p99 ${f.ms(i.first_byte_ms.p99)}`] : []),
    stacked([`↓ ${f.bytes(i.bytes_out)}`, `↑ ${f.bytes(i.bytes_in)}`]),
    stacked(i.usage ? [t("app.tokens", { n: f.count(i.usage.total_tokens) }), f.cost(i.usage)] : []),
    ...(ctx.may("operator") ? [actions(ctx, app, name, i)] : [])];
}

function stacked(lines) {
  return lines.length ? h("div", { class: "stack" }, lines.map((l) => h("span", null, l))) : "–";
}

const possible = { active: ["drain", "disable"], draining: ["activate", "disable"], disabled: ["activate"] };

function actions(ctx, app, name, instance) {
  if (!ctx.data.observed?.has(name)) return "–"; // nobody is to confirm what he was not shown
  return h("div", { class: "buttons" }, (possible[instance.state] ?? ["activate"]).map((verb) => h("button", {
    type: "button", "data-key": verb, "aria-label": `${t(`do.${verb}`)} ${name}`, onclick: () => act(ctx, app, name, verb),
  }, t(`do.${verb}`))));
}

async function act(ctx, app, name, verb) {
  const { instances } = ctx.status.applications[app];
  const now = instances[name];
  const others = Object.entries(instances).filter(([n, i]) => n !== name && takesUsers(i.status)).length;
  const seen = ctx.data.observed.get(name);
  const asking = new AbortController();
  const whither = h("p", { role: "status" }, t("move.asking"));
  // Users come and go only where the instance is, or will be, in use.
  const moves = verb === "activate" ? now.state !== "active" : takesUsers(now.status);
  if (moves) preview(ctx, app, name, verb, asking.signal).then((text) => whither.replaceChildren(text), () => whither.remove());
  const done = await ask({
    title: t(`ask.${verb}`, { name: `${app}/${name}` }),
    body: [
      h("p", null, t(`ask.${verb}.what`, { name })),
      h("ul", null,
        h("li", null, t("move.open", { open: f.count(now.active), streams: f.count(now.streams) })),
        moves && seen.ring_share !== undefined && h("li", null, t(verb === "activate" ? "move.back" : "move.away", { share: f.percent(seen.ring_share), app })),
        !moves && h("li", null, t("move.none")),
        h("li", null, t("move.others", { others }))),
      moves && whither,
      verb !== "activate" && others === 0 && h("p", { class: "fault" }, t("ask.last"))].filter(Boolean),
    yes: t(`do.${verb}`), danger: verb !== "activate",
    // What is confirmed is what was seen: a change by somebody else in between is refused.
    act: () => ctx.api.call("POST", path("apps", app, "instances", name, verb), { headers: { "If-Match": `"${seen.revision}"` } }),
  });
  asking.abort();
  ctx.reload();
  if (done) toast(t(`done.${verb}`, { name: `${app}/${name}`, open: f.count(done.open ?? 0) }));
}

/** preview asks for made-up users of the instance where they go now and would go. Returns the words for it. */
async function preview(ctx, app, name, verb, signal) {
  const { instances } = ctx.status.applications[app];
  const ends = new Map();
  let next = 0;
  let touched = 0;
  const sample = async () => {
    while (next < previewUsers && !signal.aborted) {
      const e = await ctx.api.get(question(app, madeUp(next++)), { signal });
      if ((verb === "activate" ? e.owner : e.chosen) !== name) continue;
      const after = e.order.slice(e.order.findIndex((s) => s.instance === name) + 1);
      const other = verb === "activate" ? e.chosen : after.find((s) => takesUsers(instances[s.instance]?.status))?.instance;
      touched++;
      ends.set(other ?? "", (ends.get(other ?? "") ?? 0) + 1);
    }
  };
  await Promise.all(Array.from({ length: atOnce }, sample));
  if (touched === 0) return t("move.nobody", { n: previewUsers });
  const list = [...ends].sort(([, a], [, b]) => b - a).map(([n, k]) => `${n || t("impact.none")} ${k}`).join(", ");
  return t(verb === "activate" ? "move.from" : "move.to", { touched, n: previewUsers, list });
}

function madeUp(n) {
  return `sample-user-${crypto.getRandomValues(new Uint32Array(1))[0]}-${n}`;
}

// Where users go: what the weights mean, what a sample of users meets, and one user.

function placement(ctx, declared) {
  const { counted, counting, user, explained, unexplained } = ctx.data;
  const weights = byWeight(declared.instances);
  const explain = async (e) => {
    e.preventDefault();
    const who = e.currentTarget.elements.user.value;
    const { data } = ctx;
    if (!who) return;
    try {
      Object.assign(data, { user: who, unexplained: null, explained: await ctx.api.get(question(declared.name, who)) });
    } catch (err) {
      Object.assign(data, { user: who, explained: null, unexplained: err });
    }
    ctx.redraw();
  };
  const part = (n) => (counted?.n ? (counted.taken.get(n) ?? 0) / counted.n : null);
  const given = weights.map((w) => ({ name: w.name, share: ctx.data.observed?.get(w.name)?.ring_share ?? 0 }));
  const listed = (list) => list.map((w) => `${w.name} ${f.percent(w.share)}`).join(", ");
  return section(t("ring.title"),
    h("p", { class: "dim" }, t("ring.about", { algorithm: declared.consistent_hash.hash_algorithm, n: declared.consistent_hash.virtual_nodes })),
    weights.length > 0 && h("div", { class: "ringview" },
      ring(given, `${t("ring.given")}: ${listed(given)}`),
      h("div", null,
        h("div", { class: "ringbars" },
          h("span", null, t("ring.weights")), shares(weights, listed(weights)),
          h("span", null, t("ring.given")), shares(given, listed(given)),
          counted && [h("span", null, t("ring.sample", { n: counted.n })), shares(weights.map((w) => ({ name: w.name, share: part(w.name) ?? 0 })), weights.map((w) => `${w.name} ${f.percent(part(w.name))}`).join(", "))]),
        table(t("ring.title"),
          [{ name: t("col.instance") }, { name: t("col.weight"), num: true }, { name: t("ring.weights"), num: true }, { name: t("ring.given"), num: true }, ...(counted ? [{ name: t("ring.sampled"), num: true }] : [])],
          weights.map((w, i) => ({ key: w.name, cells: [h("span", null, h("i", { class: `dot c${i % 8}`, "aria-hidden": "true" }), w.name), f.count(w.weight), f.percent(w.share), f.percent(given[i].share), ...(counted ? [f.percent(part(w.name))] : [])] })), t("app.noinstances")))),
    h("p", { class: "dim small" }, t("ring.honest"), counted ? ` ${t("ring.margin", { margin: f.percent(1 / Math.sqrt(Math.max(1, counted.n))) })}` : ""),
    h("div", { class: "row" },
      h("button", { type: "button", disabled: Boolean(counting), onclick: () => measure(ctx, declared.name) }, counting ? t("ring.measuring", { n: counted?.n ?? 0, of: sampleUsers }) : t("ring.measure", { n: sampleUsers })),
      ctx.data.unmeasured && h("div", { class: "fault", role: "alert" }, blame(ctx.data.unmeasured)),
      h("form", { class: "row", onsubmit: explain },
        h("input", { name: "user", placeholder: t("ring.user"), "aria-label": t("ring.user"), autocomplete: "off", spellcheck: "false" }),
        h("button", { type: "submit" }, t("ring.explain")))),
    unexplained && h("div", { class: "fault", role: "alert" }, blame(unexplained)),
    explained && h("div", { role: "status" },
      h("p", null, explained.chosen ? t(explained.fail_open ? "ring.failopen" : "ring.goes", { user, owner: explained.owner, chosen: explained.chosen, hash: explained.hash }) : t("ring.nobody", { user })),
      table(t("ring.order"), [{ name: "#", num: true }, { name: t("col.instance") }, { name: t("col.status") }, { name: t("col.why") }],
        explained.order.map((s, i) => ({ key: s.instance, cells: [String(i + 1), s.instance, pill("status", s.status), said(s.why)] })), t("app.noinstances"))));
}

// The user stands in the query because that is the call; it is no secret of the page.
function question(app, user) {
  return `explain?app=${encodeURIComponent(app)}&user=${encodeURIComponent(user)}`;
}

/** measure asks the server who takes the requests of made-up users: the proxies' own answer. */
async function measure(ctx, app) {
  const { data } = ctx;
  const counted = { n: 0, taken: new Map() };
  Object.assign(data, { counting: true, unmeasured: null, counted });
  let next = 0;
  const ask = async () => {
    while (next < sampleUsers && ctx.data === data && data.counted === counted) {
      const { chosen } = await ctx.api.get(question(app, madeUp(next++)));
      counted.taken.set(chosen, (counted.taken.get(chosen) ?? 0) + 1);
      counted.n++;
      ctx.redraw();
    }
  };
  try {
    await Promise.all(Array.from({ length: atOnce }, ask));
  } catch (err) {
    next = sampleUsers;
    data.unmeasured = err;
  }
  data.counting = false;
  ctx.redraw();
}
