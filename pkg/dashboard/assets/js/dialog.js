import { h } from "./dom.js";
import { blame } from "./parts.js";
import { t } from "./i18n.js";

/**
 * ask shows a question over the page and does what is asked for. A failure is
 * shown in the dialog, which then stays. act is given the form. Returns what
 * act returned, or undefined when the reader thought better of it. Without act
 * there is nothing to confirm, only to close.
 */
export function ask({ title, body, yes, danger, act }) {
  return new Promise((resolve) => {
    let result;
    const fault = h("div", { class: "fault", role: "alert", hidden: true });
    const confirm = act && h("button", { type: "submit", class: danger ? "danger" : "primary" }, yes);
    const cancel = h("button", { type: "button", onclick: () => box.close() }, t(act ? "dialog.cancel" : "dialog.close"));
    const submit = async (e) => {
      e.preventDefault();
      if (!act) return box.close();
      confirm.disabled = true;
      fault.hidden = true;
      try {
        result = (await act(e.target)) ?? null;
        box.close();
      } catch (err) {
        fault.replaceChildren(...blame(err));
        fault.hidden = false;
        confirm.disabled = false;
      }
    };
    const box = h("dialog", { "aria-labelledby": "dialog-title" },
      h("form", { onsubmit: submit }, h("h2", { id: "dialog-title" }, title), h("div", { class: "dialog-body" }, body), fault, h("div", { class: "actions" }, cancel, confirm)));
    box.addEventListener("close", () => {
      box.remove();
      resolve(result);
    });
    document.body.append(box);
    box.showModal();
    (box.querySelector("[autofocus]") ?? cancel).focus();
  });
}

/** toast says for some seconds what was done. */
export function toast(text) {
  const el = h("div", { class: "toast" }, text);
  document.getElementById("toasts").append(el);
  setTimeout(() => el.remove(), 7000);
}
