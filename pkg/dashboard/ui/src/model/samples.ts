// What successive Status documents say together. Nothing here touches the page.
import type { ApplicationStatus, Status } from "../api/types";
import type { Latency } from "./figures";
import { latency, together } from "./figures";

/** Seconds between two samples. */
export const step = 2;

/** How many samples are kept: a quarter of an hour. */
export const kept = 450;

type Value = number | null;

const fields = ["requests", "errors", "active", "streams", "p50", "p99", "first50", "first99", "in", "out"] as const;

export type Field = (typeof fields)[number];
export type Sample = Record<Field, Value>;

const idle: Sample = { requests: 0, errors: 0, active: 0, streams: 0, p50: null, p99: null, first50: null, first99: null, in: 0, out: 0 };
const nothing = Object.fromEntries(fields.map((f) => [f, null])) as Sample;

/** Series holds a list per field, each as long as Samples.times. */
export type Series = Record<Field, Value[]>;

const TOTAL = "";

/** Of these fields the documents hold what was counted ever; samples hold the growth per second, null where a counter began anew. */
const rates = ["requests", "errors", "in", "out"] as const;

/** What all applications have is the sum of what each has. */
const summed = [...rates, "active", "streams"] as const;

type Totals = Record<(typeof summed)[number], number>;

/**
 * Samples holds the figures of the whole and of each application, over time.
 * Rates are those between two documents; null is what is not known, so that
 * no line is drawn. An application without traffic costs no memory.
 */
export class Samples {
  /** When the samples were taken, in seconds since 1970, the oldest first. */
  readonly times: number[] = [];
  #last: { totals: Map<string, Totals>; complete: boolean; at: number } | null = null;
  #latest = new Map<string, Sample>();
  #series = new Map<string, Series>();

  /** add takes a Status that arrived at the time (ms, monotonic), which the clock calls wall (ms since 1970). */
  add(status: Status, at: number, wall: number): void {
    const last = this.#last;
    // Figures that were missing and come back are no traffic of this moment.
    const seconds = last && last.complete === status.complete ? (at - last.at) / 1000 : 0;
    const totals = new Map<string, Totals>();
    const latest = new Map<string, Sample>();
    const whole: Sample = { ...idle };
    const weighed: { latency: Latency; weight: number }[] = [];
    for (const [name, app] of Object.entries(status.applications)) {
      const now = total(app);
      const s: Sample = { ...now, ...latency(app) };
      const before = last?.totals.get(name) ?? now; // a new application counts from the next sample on
      for (const f of rates) s[f] = seconds > 0 && now[f] >= before[f] ? (now[f] - before[f]) / seconds : null;
      for (const f of summed) whole[f] = whole[f] === null || s[f] === null ? null : whole[f] + s[f];
      totals.set(name, now);
      latest.set(name, s);
      if (s.p50 !== null || s.first50 !== null) weighed.push({ latency: s, weight: s.requests ?? 0 });
    }
    if (seconds <= 0) for (const f of rates) whole[f] = null;
    latest.set(TOTAL, { ...whole, ...together(weighed) });
    this.#last = { totals, complete: status.complete, at };
    this.#latest = latest;
    this.#push(wall / 1000, latest);
  }

  /** gap marks that nothing is known for a while, so that no line is drawn across. */
  gap(wall: number): void {
    if (!this.#last) return;
    this.#last = null;
    this.#push(wall / 1000, new Map([...this.#series.keys()].map((name) => [name, nothing])));
  }

  /** latest returns the newest sample of the application, or of the whole. */
  latest(app = TOTAL): Sample {
    return this.#latest.get(app) ?? nothing;
  }

  /** series returns all samples of the application, or of the whole. */
  series(app = TOTAL): Series {
    return this.#series.get(app) ?? this.#begun(this.times.length, this.#latest.has(app) ? idle : nothing);
  }

  #push(time: number, latest: Map<string, Sample>): void {
    const n = this.times.push(time);
    for (const [name, s] of latest) {
      let series = this.#series.get(name);
      if (!series && name !== TOTAL && !s.requests && !s.active) continue;
      if (!series) this.#series.set(name, (series = this.#begun(n - 1, name === TOTAL ? nothing : idle)));
      for (const f of fields) series[f].push(s[f]);
    }
    for (const name of this.#series.keys()) if (!latest.has(name)) this.#series.delete(name);
    if (n <= kept) return;
    this.times.shift();
    for (const series of this.#series.values()) for (const f of fields) series[f].shift();
  }

  #begun(length: number, as: Sample): Series {
    return Object.fromEntries(fields.map((f) => [f, new Array<Value>(length).fill(as[f])])) as Series;
  }
}

/** total is what an application has counted, and has open. */
function total(app: ApplicationStatus): Totals {
  const n: Totals = { requests: app.total_requests, errors: app.errors, active: app.active, streams: 0, in: 0, out: 0 };
  for (const i of Object.values(app.instances)) {
    n.streams += i.streams;
    n.in += i.bytes_in;
    n.out += i.bytes_out;
  }
  return n;
}
