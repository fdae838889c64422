// What successive Status documents say together. Nothing here touches the page.
import type { ApplicationStatus, InstanceStatus, Status } from "../api/types";
import type { Latency } from "./figures";
import { latency, sum, together } from "./figures";

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

/**
 * Samples holds the figures of the whole and of each application, over time.
 * Rates are those between two documents; null is what is not known, so that
 * no line is drawn. An application without traffic costs no memory.
 */
export class Samples {
  /** When the samples were taken, in seconds since 1970, the oldest first. */
  readonly times: number[] = [];
  #last: { status: Status; at: number } | null = null;
  #latest = new Map<string, Sample>();
  #series = new Map<string, Series>();

  /** add takes a Status that arrived at the time (ms, monotonic), which the clock calls wall (ms since 1970). */
  add(status: Status, at: number, wall: number): void {
    const last = this.#last;
    this.#last = { status, at };
    const apps = Object.entries(status.applications);
    // Figures that were missing and come back are no traffic of this moment.
    const seconds = last && last.status.complete === status.complete ? (at - last.at) / 1000 : 0;
    const before = (name: string): ApplicationStatus | undefined => last?.status.applications[name];
    const latest = new Map<string, Sample>();
    for (const [name, app] of apps) latest.set(name, { ...counted([[app, before(name)]], seconds), ...latency(app) });
    const weighed = apps.map(([name, app]) => ({ latency: latency(app), weight: latest.get(name)?.requests ?? 0 }));
    latest.set(TOTAL, { ...counted(apps.map(([name, app]) => [app, before(name)]), seconds), ...together(weighed) });
    this.#push(wall / 1000, latest);
    this.#latest = latest;
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

function counted(apps: [ApplicationStatus, ApplicationStatus | undefined][], seconds: number): Omit<Sample, keyof Latency> {
  const now = apps.map(([app]) => app);
  const instances = now.flatMap((app) => Object.values(app.instances));
  const carried = (get: (i: InstanceStatus) => number): Value => grown(apps, (app) => sum(Object.values(app.instances), get), seconds);
  return {
    requests: grown(apps, (app) => app.total_requests, seconds),
    errors: grown(apps, (app) => app.errors, seconds),
    active: sum(now, (app) => app.active),
    streams: sum(instances, (i) => i.streams),
    in: carried((i) => i.bytes_in),
    out: carried((i) => i.bytes_out),
  };
}

/** grown is the growth per second; null where a counter began anew, or nothing came before. New applications count from the next sample on. */
function grown(apps: [ApplicationStatus, ApplicationStatus | undefined][], get: (app: ApplicationStatus) => number, seconds: number): Value {
  if (seconds <= 0) return null;
  let n = 0;
  for (const [now, before] of apps) {
    const d = before ? get(now) - get(before) : 0;
    if (d < 0) return null;
    n += d;
  }
  return n / seconds;
}
