import { h } from "./dom.js";
import { path } from "./api.js";
import { ask, toast } from "./dialog.js";
import * as f from "./format.js";
import { t, word } from "./i18n.js";
import { table } from "./parts.js";

export const access = { load, render };

const roles = ["viewer", "operator", "admin"];

async function load(ctx, signal) {
  ctx.data.tokens = await ctx.api.all("access", { signal });
}

function render(ctx) {
  const { tokens } = ctx.data;
  const mayChange = ctx.may("admin");
  const columns = [{ name: t("col.name") }, { name: t("col.role") }, { name: t("col.hint") }, { name: t("col.created") }, { name: t("col.used") }, ...(mayChange ? [{ name: t("col.actions") }] : [])];
  return h("div", null,
    h("div", { class: "head" }, h("h1", null, t("nav.access")),
      mayChange && h("button", { type: "button", class: "primary", "data-key": "make", onclick: () => make(ctx) }, t("access.make"))),
    h("p", { class: "dim" }, t("access.about")),
    h("section", { class: "card" }, !tokens && !ctx.fault && h("p", { class: "dim" }, t("wait")),
      tokens && table(t("nav.access"), columns, tokens.map((a) => ({ key: a.id, cells: [
        h("div", null, h("b", null, a.name), a.id === ctx.id && h("div", { class: "dim small" }, t("access.mine"))),
        word("role", a.role), a.token_hint ? `…${a.token_hint}` : "–", a.created ? f.moment(a.created) : "–", a.last_used ? f.moment(a.last_used) : t("access.unused"),
        ...(mayChange ? [h("div", { class: "buttons" }, h("button", { type: "button", "data-key": "revoke", "aria-label": `${t("access.revoke")} ${a.name}`, onclick: () => revoke(ctx, a) }, t("access.revoke")))] : [])] })), t("access.none"))));
}

async function make(ctx) {
  const made = await ask({
    title: t("access.make"), yes: t("access.do"),
    body: [
      h("label", { for: "access-name" }, t("col.name")),
      h("input", { id: "access-name", name: "name", required: true, autocomplete: "off", spellcheck: "false", autofocus: true }),
      h("label", { for: "access-role" }, t("col.role")),
      h("select", { id: "access-role", name: "role" }, roles.map((r) => h("option", { value: r }, `${word("role", r)}: ${t(`can.${r}`)}`)))],
    act: (form) => ctx.api.call("POST", "access", { body: { name: form.elements.name.value.trim(), role: form.elements.role.value } }),
  });
  if (!made) return;
  ctx.reload();
  const shown = h("input", { class: "secret", readonly: true, value: made.token, "aria-label": t("signin.token"), spellcheck: "false", autofocus: true });
  const copy = async () => {
    shown.select();
    try {
      await navigator.clipboard.writeText(made.token);
      toast(t("access.copied"));
    } catch { /* without TLS a browser may forbid it; the text is selected */ }
  };
  await ask({
    title: t("access.made", { name: made.name }),
    body: [h("p", null, t("access.once")), h("div", { class: "row" }, shown, h("button", { type: "button", onclick: copy }, t("access.copy")))],
  });
}

async function revoke(ctx, token) {
  const done = await ask({
    title: t("access.ask", { name: token.name }), yes: t("access.revoke"), danger: true,
    body: [h("p", null, t(token.id === ctx.id ? "access.own" : "access.what", { name: token.name }))],
    act: async () => {
      await ctx.api.call("DELETE", path("access", token.id));
      return true;
    },
  });
  if (!done) return;
  toast(t("access.revoked", { name: token.name }));
  ctx.reload();
}
