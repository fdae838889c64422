import type { JSX } from "preact";
import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";
import uPlot from "uplot";
import "uplot/dist/uPlot.min.css";
import * as f from "../format";
import { language } from "../i18n/i18n";
import { roundUp } from "../model/figures";
import type { Field, Series } from "../model/samples";
import { step } from "../model/samples";
import { useLook } from "../look";

const height = 138;

/** Seconds that an axis may have, and between its ticks. */
const spans = [60, 120, 180, 300, 600, 900];
const ticks = [10, 15, 30, 60, 120, 180, 300];

export interface Line {
  field: Field;
  name?: string;
}

interface Props {
  title: string;
  lines: Line[];
  format: (n: number | null | undefined) => string;
  /** Where the axis of figures up to so many ends. */
  top?: (most: number) => number;
  times: number[];
  series: Series;
  /** The longest axis, in seconds; as long as there is less to show, it is shorter. */
  longest: number;
}

/**
 * Plot draws lines over time, the newest at the right edge. All plots of a
 * page share the cursor. The canvas takes its colours from the stylesheet.
 */
export function Plot({ title, lines, format, top = roundUp, times, series, longest }: Props): JSX.Element {
  const figure = useRef<HTMLElement>(null);
  const canvas = useRef<HTMLDivElement>(null);
  const plot = useRef<uPlot | null>(null);
  const [hovered, setHovered] = useState<number | null>(null);
  const look = `${useLook()} ${language()}`;

  const last = times.at(-1) ?? Date.now() / 1000;
  const covered = last - (times[0] ?? last);
  const width = Math.min(longest, spans.find((s) => s >= covered) ?? longest);
  const drawn = useRef({ format, top, from: 0, to: 0 });
  drawn.current = { format, top, from: last - width, to: last };

  useLayoutEffect(() => {
    const box = canvas.current;
    if (!box) return;
    const colour = (line: number): string => getComputedStyle(figure.current?.querySelector(`.dot.line${line}`) ?? box).backgroundColor;
    const style = (property: "color" | "borderTopColor") => (): string => getComputedStyle(box)[property];
    const font = `11px ${getComputedStyle(box).fontFamily}`;
    const made = new uPlot({
      width: box.clientWidth, height, padding: [6, 4, 0, 0], legend: { show: false },
      cursor: { y: false, drag: { x: false, y: false }, sync: { key: "difylb" }, points: { size: 7, width: 1.5 } },
      scales: {
        x: { range: () => [drawn.current.from, drawn.current.to] },
        y: { range: (_, __, max) => [0, drawn.current.top(max)] },
      },
      axes: [
        {
          stroke: style("color"), font, size: 24, space: 56, incrs: ticks, gap: 6, grid: { show: false }, ticks: { show: false },
          // A label that would be cut off at the edge is left out.
          values: (u, at, _, __, between) => at.map((s) => (u.valToPos(drawn.current.to, "x") - u.valToPos(s, "x") < 26 ? "" : (between < 60 ? f.clock : f.hour)(s * 1000))),
        },
        {
          stroke: style("color"), font, size: labelled, gap: 6, grid: { stroke: style("borderTopColor"), width: 1 }, ticks: { show: false },
          splits: (_, __, ___, max) => [0, max / 2, max], values: (_, at) => at.map((v) => drawn.current.format(v)),
        },
      ],
      series: [{}, ...lines.map((_, i) => ({
        stroke: () => colour(i), width: 1.5, points: { show: false },
        fill: lines.length === 1 ? () => colour(i).replace("rgb(", "rgba(").replace(")", ", 0.12)") : undefined,
      }))],
      hooks: { setCursor: [(u) => setHovered(u.cursor.idx ?? null)] },
    }, [[], ...lines.map(() => [])], box);
    plot.current = made;
    const resized = new ResizeObserver(() => made.setSize({ width: box.clientWidth, height }));
    resized.observe(box);
    return () => {
      resized.disconnect();
      made.destroy();
    };
  }, [lines.map((l) => l.field).join()]);

  // The lists grow in place.
  useEffect(() => plot.current?.setData([times, ...lines.map((l) => series[l.field])]), [series, last, width]);
  useEffect(() => plot.current?.redraw(false, true), [look]);

  const at = hovered !== null && hovered < times.length ? hovered : times.length - 1;
  const value = (l: Line, i: number): string => format(series[l.field][i]);
  return (
    <figure ref={figure} class="plot card">
      <figcaption>
        <span class="plot-title">{title}</span>
        {hovered !== null && <time class="dim small">{f.clock((times[at] ?? 0) * 1000)}</time>}
        <span class="legend">
          {lines.map((l, i) => <span key={l.field}><i class={`dot line${i}`} aria-hidden="true" />{l.name && <span class="dim">{l.name} </span>}<b>{value(l, at)}</b></span>)}
        </span>
      </figcaption>
      <div ref={canvas} class="canvas" role="img" aria-label={`${title}: ${lines.map((l) => `${l.name ?? ""} ${value(l, times.length - 1)}`.trim()).join(", ")}`} />
    </figure>
  );
}

/** labelled is how wide the labels of the axis of figures are; most plots of a page agree. */
function labelled(u: uPlot, labels: string[] | null): number {
  if (!labels) return 0;
  const { font } = u.ctx; // uPlot remembers what it has set
  u.ctx.font = `${11 * devicePixelRatio}px ${getComputedStyle(u.root.parentElement ?? u.root).fontFamily}`;
  const widest = Math.max(...labels.map((l) => u.ctx.measureText(l).width)) / devicePixelRatio;
  u.ctx.font = font;
  return Math.max(46, Math.ceil(widest) + 12);
}

/** Spark draws the newest of the values, without an axis. */
export function Spark({ values }: { values: (number | null)[] }): JSX.Element {
  const shown = values.slice(-sparked);
  const top = Math.max(1e-9, ...shown.map((v) => v ?? 0));
  let d = "";
  let pen = false;
  shown.forEach((v, i) => {
    if (v !== null) d += `${pen ? "L" : "M"}${sparked - shown.length + i} ${(19 - (v / top) * 17).toFixed(1)}`;
    pen = v !== null;
  });
  return <svg class="spark" viewBox={`0 0 ${sparked - 1} 20`} preserveAspectRatio="none" aria-hidden="true"><path d={d} /></svg>;
}

/** Three minutes. */
const sparked = 180 / step;
