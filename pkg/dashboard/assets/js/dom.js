// Elements without markup: data becomes text nodes and attributes, never HTML.

const SVG = "http://www.w3.org/2000/svg";
const HANDLERS = ["onclick", "onsubmit", "oninput", "onchange", "onpointermove", "onpointerleave"];

/** h("p", {class: "note", onclick: f}, "text", element, [more]) makes an element. */
export function h(tag, props, ...children) {
  return fill(document.createElement(tag), props, children);
}

/** svg is h for SVG elements. */
export function svg(tag, props, ...children) {
  return fill(document.createElementNS(SVG, tag), props, children);
}

function fill(el, props, children) {
  for (const [name, value] of Object.entries(props ?? {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) {
      if (!HANDLERS.includes(name)) throw new Error(`morph does not know ${name}`);
      el[name] = value;
    } else {
      el.setAttribute(name, value === true ? "" : String(value));
    }
  }
  el.append(...children.flat(Infinity).filter((c) => c !== undefined && c !== null && c !== false).map((c) => (c instanceof Node ? c : String(c))));
  return el;
}

/**
 * morph makes the children of parent look like next, keeping the elements that
 * fit. So focus, selection, scroll positions and what is typed survive the
 * redraw that each new figure brings. data-key tells siblings apart.
 */
export function morph(parent, next) {
  const keyed = new Map();
  for (const c of parent.childNodes) if (keyOf(c)) keyed.set(keyOf(c), c);
  let at = parent.firstChild;
  for (const n of next) {
    const key = keyOf(n);
    let old = key ? keyed.get(key) : at;
    if (old && (old.nodeName !== n.nodeName || keyOf(old) !== key || old.parentNode !== parent)) old = undefined;
    if (!old) {
      parent.insertBefore(n, at);
      continue;
    }
    if (old === at) at = at.nextSibling;
    else parent.insertBefore(old, at);
    sync(old, n);
  }
  while (at) {
    const gone = at;
    at = at.nextSibling;
    gone.remove();
  }
}

function keyOf(node) {
  return node.nodeType === Node.ELEMENT_NODE ? node.getAttribute("data-key") : null;
}

function sync(old, next) {
  if (old.nodeType !== Node.ELEMENT_NODE) {
    if (old.nodeValue !== next.nodeValue) old.nodeValue = next.nodeValue;
    return;
  }
  for (const { name } of [...old.attributes]) {
    // Whether details are open is the reader's affair.
    if (!next.hasAttribute(name) && !(name === "open" && old.nodeName === "DETAILS")) old.removeAttribute(name);
  }
  for (const { name, value } of next.attributes) {
    if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  }
  for (const name of HANDLERS) if (old[name] !== next[name]) old[name] = next[name];
  morph(old, [...next.childNodes]);
}
