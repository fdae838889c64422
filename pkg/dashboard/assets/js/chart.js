import { h, svg } from "./dom.js";
import { clock, span } from "./format.js";
import { t } from "./i18n.js";
import { kept, step } from "./model.js";

const hovered = new Map(); // id of a chart → index under the pointer
const W = 600;
const H = 120;

/** nice returns the next of 1, 2, 5 × 10^n at or above x. */
function nice(x) {
  if (!(x > 0)) return 1;
  const p = 10 ** Math.floor(Math.log10(x));
  return [1, 2, 5, 10].map((m) => m * p).find((v) => v >= x * 0.999);
}

/** wide returns how many samples the axis has room for: a minute at first, then more. */
function wide(n) {
  return [30, 60, 90, kept].find((w) => n <= w) ?? kept;
}

/**
 * chart draws lines over time, the newest at the right edge.
 * lines: [{key, name}] picks the fields of the samples; redraw is called when
 * the pointer asks for other figures.
 */
export function chart({ id, title, note, samples, lines, format, redraw }) {
  const top = nice(Math.max(0, ...samples.flatMap((s) => lines.map((l) => s[l.key] ?? 0))));
  const room = wide(samples.length);
  const x = (i) => ((room - samples.length + i) / (room - 1)) * W;
  const y = (v) => H - (v / top) * (H - 4) - 1;
  const at = Math.min(hovered.get(id) ?? samples.length - 1, samples.length - 1);
  const shown = samples[at] ?? {};
  const move = (e) => {
    const box = e.currentTarget.getBoundingClientRect();
    const i = Math.round(((e.clientX - box.left) / box.width) * (room - 1)) - (room - samples.length);
    hovered.set(id, Math.max(0, Math.min(samples.length - 1, i)));
    redraw();
  };
  const leave = () => {
    hovered.delete(id);
    redraw();
  };
  return h("figure", { class: "chart card", "data-key": `chart-${id}` },
    h("figcaption", null,
      h("span", { class: "chart-title" }, title),
      h("span", { class: "chart-now" }, lines.map((l, i) => h("span", { class: "legend" }, h("i", { class: `dot line${i}`, "aria-hidden": "true" }), l.name && h("span", { class: "dim" }, l.name), h("b", null, format(shown[l.key])))))),
    h("div", { class: "plot", onpointermove: move, onpointerleave: leave },
      svg("svg", { viewBox: `0 0 ${W} ${H}`, preserveAspectRatio: "none", role: "img", "aria-label": `${title}: ${lines.map((l) => `${l.name ?? ""} ${format(samples.at(-1)?.[l.key])}`).join(", ")}` },
        [0.5, 1].map((f) => svg("line", { class: "grid", x1: 0, x2: W, y1: y(top * f), y2: y(top * f) })),
        svg("line", { class: "axis", x1: 0, x2: W, y1: H - 1, y2: H - 1 }),
        lines.map((l, i) => [
          i === 0 && lines.length === 1 && svg("path", { class: `area line${i}`, d: trace(samples, l.key, x, y, true) }),
          svg("path", { class: `stroke line${i}`, d: trace(samples, l.key, x, y, false) }),
        ]),
        hovered.has(id) && svg("line", { class: "cursor", x1: x(at), x2: x(at), y1: 0, y2: H })),
      h("span", { class: "top" }, format(top)),
      h("span", { class: "when" }, hovered.has(id) && shown.wall ? clock(shown.wall) : "")),
    h("div", { class: "chart-foot dim" }, h("span", null, t("chart.ago", { span: span(room * step) })), note && h("span", null, note), h("span", null, t("chart.now"))));
}

function trace(samples, key, x, y, closed) {
  let d = "";
  let from = -1;
  const end = (i) => {
    if (from >= 0 && closed) d += `L${x(i).toFixed(1)} ${H - 1}L${x(from).toFixed(1)} ${H - 1}Z`;
    else if (from === i) d += "h1"; // a point alone would not be drawn
    from = -1;
  };
  samples.forEach((s, i) => {
    const v = s[key];
    if (typeof v !== "number") {
      if (from >= 0) end(i - 1);
      return;
    }
    d += `${from < 0 ? "M" : "L"}${x(i).toFixed(1)} ${y(v).toFixed(1)}`;
    if (from < 0) from = i;
  });
  if (from >= 0) end(samples.length - 1);
  return d;
}

/** ring draws parts of a whole as a ring, clockwise from the top. parts: [{name, share}] */
export function ring(parts, label) {
  const R = 40;
  const around = 2 * Math.PI * R;
  let at = 0;
  return svg("svg", { class: "ring", viewBox: "0 0 100 100", role: "img", "aria-label": label },
    svg("circle", { class: "ring-track", cx: 50, cy: 50, r: R }),
    parts.map((p, i) => {
      const from = at;
      at += p.share;
      const length = Math.max(0, p.share * around - (p.share < 1 ? 0.8 : 0));
      return length > 0 && svg("circle", {
        class: `ring-part s${i % 8}`, cx: 50, cy: 50, r: R, transform: "rotate(-90 50 50)",
        "stroke-dasharray": `${length.toFixed(3)} ${(around - length).toFixed(3)}`, "stroke-dashoffset": (-from * around).toFixed(3),
      }, svg("title", null, p.name));
    }));
}

/** shares draws parts of a whole as one bar. parts: [{name, share}] */
export function shares(parts, label) {
  let at = 0;
  return svg("svg", { class: "shares", viewBox: "0 0 1000 24", preserveAspectRatio: "none", role: "img", "aria-label": label },
    svg("rect", { class: "track", x: 0, y: 0, width: 1000, height: 24 }),
    parts.map((p, i) => {
      const from = at;
      at += p.share * 1000;
      return p.share > 0 && svg("rect", { class: `c${i % 8}`, x: from.toFixed(2), y: 0, width: Math.max(0, p.share * 1000 - 2).toFixed(2), height: 24 });
    }));
}
