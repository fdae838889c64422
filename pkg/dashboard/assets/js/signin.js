import { h } from "./dom.js";
import { Refusal } from "./api.js";
import { t } from "./i18n.js";
import { blame } from "./parts.js";

/** signIn draws the form; begin takes the token and throws when it is of no use. */
export function signIn(fault, begin) {
  const submit = async (e) => {
    e.preventDefault();
    const form = e.currentTarget;
    const input = form.elements.token;
    const say = form.querySelector(".fault");
    const button = form.querySelector("button");
    const token = input.value.trim();
    if (!token) return input.focus();
    button.disabled = true;
    try {
      await begin(token);
    } catch (err) {
      say.replaceChildren(...(err instanceof Refusal && err.status === 401 ? [t("signin.wrong")] : blame(err)));
      say.hidden = false;
      button.disabled = false;
      input.select();
    }
  };
  return h("main", { id: "main", class: "signin", tabindex: "-1", "data-key": "signin" },
    h("form", { class: "card", onsubmit: submit },
      h("h1", null, t("signin.title")),
      h("p", { class: "dim" }, t("signin.about")),
      h("label", { for: "token" }, t("signin.token")),
      h("input", { id: "token", name: "token", type: "password", autocomplete: "off", autocapitalize: "none", spellcheck: "false", required: true }),
      h("div", { class: "fault", role: "alert", hidden: !fault }, fault),
      h("button", { class: "primary", type: "submit" }, t("signin.go")),
      h("p", { class: "dim small" }, t("signin.where"))));
}
