import { Api, Refusal } from "./api.js";
import { h, morph } from "./dom.js";
import { choose, language, languages, t, word } from "./i18n.js";
import { History, step } from "./model.js";
import { blame } from "./parts.js";
import { access } from "./access.js";
import { application } from "./application.js";
import { applications } from "./applications.js";
import { events } from "./events.js";
import { history, change } from "./history.js";
import { nodes } from "./nodes.js";
import { overview } from "./overview.js";
import { servers } from "./servers.js";
import { signIn } from "./signin.js";

const pollEvery = step * 1000;
const slowest = 10_000;
const tokenKey = "difylb.token";
const keptEvents = 300;

// The routes by the first part of the hash. A view is {load, render}: load
// reads what the Status document does not hold, render draws from ctx.
const views = { "": overview, apps: applications, app: application, servers, nodes, events, history, change, access };
const sections = ["", "apps", "servers", "nodes", "events", "history", "access"];
const parents = { app: "apps", change: "history" };

/** What all views draw from. */
const ctx = {
  api: null, id: "", name: "", role: "", // who is signed in
  status: null, samples: new History(), events: [], following: false,
  lost: "", stale: "", // why the picture is old, in words
  route: "", params: [], query: new Map(), // where the reader is
  data: {}, fault: null, // of the view, from its load
  redraw, reload, may,
};

let session = null; // aborts all that runs for the token
let visit = null; // aborts what runs for the view
let signInFault = "";
let drawing = false;

/** may says whether the role allows what needs at least the given one; the server judges in any case. */
function may(need) {
  const ranks = ["viewer", "operator", "admin"];
  return ranks.indexOf(ctx.role) >= ranks.indexOf(need);
}

function redraw() {
  if (drawing) return;
  drawing = true;
  requestAnimationFrame(() => {
    drawing = false;
    draw();
  });
}

function draw() {
  const root = document.getElementById("app");
  if (!ctx.api) {
    const there = document.getElementById("token");
    morph(root, [frame(signIn(signInFault, begin))]);
    if (!there) document.getElementById("token").focus();
    document.title = "difylb";
    return;
  }
  let content;
  try {
    content = ctx.status || ctx.fault ? views[ctx.route].render(ctx) : h("p", { class: "dim", "data-key": "wait" }, t("wait"));
  } catch (err) {
    console.error(err);
    content = h("p", { class: "fault", "data-key": "broken", role: "alert" }, t("error.page", { error: err.message }));
  }
  const place = t(`nav.${parents[ctx.route] ?? (ctx.route || "overview")}`);
  document.title = `${ctx.params[0] ?? place} · difylb`;
  morph(root, [frame(
    ctx.lost && h("div", { class: "banner bad", role: "alert", "data-key": "lost" }, ctx.lost),
    ctx.stale && h("div", { class: "banner", role: "status", "data-key": "stale" }, t("banner.stale", { age: ctx.stale })),
    h("main", { id: "main", tabindex: "-1", "data-key": "main" },
      ctx.fault && h("div", { class: "fault", role: "alert", "data-key": "fault" }, blame(ctx.fault)),
      h("div", { "data-key": `view-${ctx.route}-${ctx.params.join("/")}` }, content)))]);
}

function frame(...content) {
  const here = parents[ctx.route] ?? ctx.route;
  return h("div", { class: "frame", "data-key": ctx.api ? "in" : "out" },
    ctx.api && h("button", { type: "button", class: "skip", onclick: () => document.getElementById("main")?.focus() }, t("nav.skip")),
    h("header", null,
      h("a", { class: "brand", href: "#/" }, h("img", { src: "assets/icon.svg", alt: "", width: 26, height: 26 }), "difylb"),
      ctx.api && h("nav", { "aria-label": t("nav.label") }, sections.map((s) => h("a", { href: `#/${s}`, "aria-current": here === s ? "page" : null }, t(`nav.${s || "overview"}`)))),
      h("div", { class: "controls" },
        ctx.api && h("span", { class: "who" }, ctx.name && h("span", { class: "who-name" }, ctx.name), h("span", { class: "badge" }, word("role", ctx.role))),
        picker(t("control.language"), languages, language(), (v) => {
          remember("difylb.language", v);
          choose(v);
        }),
        picker(t("control.theme"), { auto: t("theme.auto"), light: t("theme.light"), dark: t("theme.dark") }, document.documentElement.dataset.theme ?? "auto", (v) => {
          remember("difylb.theme", v);
          theme(v);
        }),
        ctx.api && h("button", { type: "button", class: "quiet", onclick: () => end("") }, t("control.signout")))),
    content);
}

function picker(label, options, value, pick) {
  const change = (e) => {
    pick(e.currentTarget.value);
    redraw();
  };
  return h("select", { "aria-label": label, title: label, onchange: change }, Object.entries(options).map(([v, text]) => h("option", { value: v, selected: v === value }, text)));
}

function theme(value) {
  if (value === "light" || value === "dark") document.documentElement.dataset.theme = value;
  else delete document.documentElement.dataset.theme;
}

// A browser may forbid storage; then the page forgets, and works.
function remember(key, value, where = "localStorage") {
  try {
    if (value === null) window[where].removeItem(key);
    else window[where].setItem(key, value);
  } catch { /* as said */ }
}

function recall(key, where = "localStorage") {
  try {
    return window[where].getItem(key);
  } catch {
    return null;
  }
}

/** begin signs in. Throws what speaks against it. */
async function begin(token) {
  const api = new Api(token);
  const me = await api.get("whoami");
  session?.abort();
  remember(tokenKey, token, "sessionStorage");
  Object.assign(ctx, { api, id: me.id, name: me.name, role: me.role, status: null, samples: new History(), events: [], lost: "", stale: "" });
  signInFault = "";
  session = new AbortController();
  poll(session.signal);
  follow(session.signal);
  go();
}

/** end signs out, and says why when it was not the reader's wish. */
function end(why) {
  session?.abort();
  visit?.abort();
  remember(tokenKey, null, "sessionStorage");
  Object.assign(ctx, { api: null, id: "", name: "", role: "", status: null, samples: new History(), events: [], data: {}, fault: null, lost: "", stale: "" });
  closeDialogs();
  signInFault = why;
  redraw();
}

// A question was about the view that it stood over.
function closeDialogs() {
  for (const box of document.querySelectorAll("dialog")) box.close();
}

function pause(ms, signal) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, ms);
    signal.addEventListener("abort", () => {
      clearTimeout(timer);
      resolve();
    }, { once: true });
  });
}

async function poll(signal) {
  for (let failures = 0; !signal.aborted; ) {
    try {
      const status = await ctx.api.get("status", { signal, note: (headers) => (ctx.stale = headers.get("X-Config-Stale") ?? "") });
      if (failures > 0 && ctx.lost) reload();
      failures = 0;
      ctx.lost = "";
      ctx.status = status;
      ctx.samples.add(status, performance.now(), Date.now());
      views[ctx.route].poll?.(ctx, visit.signal);
    } catch (err) {
      if (signal.aborted) return;
      if (err instanceof Refusal && err.status === 401) return end(t("signin.ended"));
      failures++;
      ctx.samples.gap();
      ctx.lost = t("banner.lost", { error: err.message });
    }
    redraw();
    await pause(Math.min(pollEvery * 2 ** Math.max(0, failures - 1), slowest), signal);
  }
}

async function follow(signal) {
  for (let wait = 1000; !signal.aborted; wait = Math.min(wait * 2, slowest)) {
    try {
      await ctx.api.follow(signal, (type, data) => {
        wait = 1000;
        ctx.following = true;
        ctx.events.unshift({ type, data, at: data.time ?? new Date().toISOString(), n: (ctx.events[0]?.n ?? 0) + 1 });
        ctx.events.length = Math.min(ctx.events.length, keptEvents);
        if (type === "configuration" || type === "reset" || (type === "health" && ctx.route === "app" && data.app === ctx.params[0])) reload();
        redraw();
      });
    } catch { /* the polling says what is wrong */ }
    ctx.following = false;
    if (!signal.aborted) redraw();
    await pause(wait, signal);
  }
}

/** go follows the hash. */
function go() {
  const [first, ...params] = location.hash.replace(/^#\/?/, "").split("/").map((p) => {
    try {
      return decodeURIComponent(p);
    } catch {
      return p;
    }
  });
  const route = Object.hasOwn(views, first) ? first : "";
  const moved = route !== ctx.route || params.join("/") !== ctx.params.join("/");
  Object.assign(ctx, { route, params, data: {}, fault: null });
  closeDialogs();
  if (!ctx.api) return redraw();
  reload();
  draw();
  if (moved) {
    window.scrollTo(0, 0);
    document.getElementById("main")?.focus({ preventScroll: true });
  }
}

/** reload reads anew what the view shows beside the Status document. */
async function reload() {
  visit?.abort();
  visit = new AbortController();
  const { signal } = visit;
  try {
    await views[ctx.route].load?.(ctx, signal);
    if (!signal.aborted) ctx.fault = null;
  } catch (err) {
    if (signal.aborted) return;
    if (err instanceof Refusal && err.status === 401) return end(t("signin.ended"));
    ctx.fault = err;
  }
  redraw();
}

async function start() {
  choose(recall("difylb.language"));
  theme(recall("difylb.theme"));
  window.addEventListener("hashchange", go);
  const token = recall(tokenKey, "sessionStorage");
  go();
  if (!token) return;
  for (;;) {
    try {
      return await begin(token);
    } catch (err) {
      if (err instanceof Refusal && err.status < 500) return end(err.status === 401 ? t("signin.ended") : err.message);
      signInFault = t("banner.lost", { error: err.message });
      redraw();
      await new Promise((resolve) => setTimeout(resolve, 3000));
      if (ctx.api) return; // signed in by hand meanwhile
    }
  }
}

start();
