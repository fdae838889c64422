// What successive Status documents say together. Nothing here touches the page.

/** Seconds between two samples. */
export const step = 2;

/** How many samples are kept: five minutes. */
export const kept = 150;

const TOTAL = "";

/** A History holds the samples of the whole (series("")) and of each application. */
export class History {
  #last = null;
  #series = new Map();

  /** add takes a Status that arrived at the time (ms, monotonic). */
  add(status, at, wall) {
    const last = this.#last;
    this.#last = { status, at };
    const apps = Object.entries(status.applications);
    // Figures that were missing and come back are no traffic of this moment.
    const seconds = last && last.status.complete === status.complete ? (at - last.at) / 1000 : 0;
    this.#push(TOTAL, sample(apps.map(([, a]) => a), seconds && apps.map(([name]) => last.status.applications[name]), seconds, wall));
    for (const [name, app] of apps) this.#push(name, sample([app], seconds && [last.status.applications[name]], seconds, wall));
    for (const name of this.#series.keys()) if (name !== TOTAL && !(name in status.applications)) this.#series.delete(name);
  }

  /** gap marks that nothing is known for a while, so that no line is drawn across. */
  gap() {
    this.#last = null;
    for (const list of this.#series.values()) if (list.at(-1)?.wall) list.push({ wall: 0 });
  }

  /** series returns the samples of the application, the oldest first. */
  series(app = TOTAL) {
    return this.#series.get(app) ?? [];
  }

  #push(name, s) {
    const list = this.#series.get(name) ?? [];
    list.push(s);
    if (list.length > kept) list.shift();
    this.#series.set(name, list);
  }
}

function sample(apps, before, seconds, wall) {
  const instances = apps.flatMap((a) => Object.values(a.instances));
  const s = { wall, requests: null, errors: null, active: sum(apps, (a) => a.active), streams: sum(instances, (i) => i.streams) };
  if (seconds > 0) {
    s.requests = grown(apps, before, "total_requests", seconds);
    s.errors = grown(apps, before, "errors", seconds);
  }
  return Object.assign(s, latency(instances));
}

/** grown is null when a counter began anew or one of the applications is new. */
function grown(apps, before, field, seconds) {
  let n = 0;
  for (let i = 0; i < apps.length; i++) {
    const d = apps[i][field] - (before[i]?.[field] ?? NaN);
    if (d < 0) return null;
    n += d || 0;
  }
  return n / seconds;
}

/**
 * latency of several instances. Quantiles cannot be added up: the median is
 * the instances' mean by their requests, the 99th percentile that of the
 * slowest, which is an upper bound.
 */
export function latency(instances) {
  const used = instances.filter((i) => i.requests > 0);
  const n = sum(used, (i) => i.requests);
  const mean = (get) => (n ? sum(used, (i) => get(i) * i.requests) / n : null);
  const most = (get) => (n ? Math.max(...used.map(get)) : null);
  return { p50: mean((i) => i.latency_ms.p50), p99: most((i) => i.latency_ms.p99), first50: mean((i) => i.first_byte_ms.p50), first99: most((i) => i.first_byte_ms.p99) };
}

export function sum(list, get) {
  return list.reduce((n, x) => n + get(x), 0);
}

/** takesUsers says whether an instance with this status is given new requests. */
export function takesUsers(status) {
  return status === "healthy" || status === "unknown";
}

/** byWeight returns each instance's part of the weights of those on the ring, which is all with state active. */
export function byWeight(instances) {
  const weight = (i) => (i.state === "active" ? i.weight : 0);
  const all = sum(instances, weight);
  return instances.map((i) => ({ name: i.name, weight: i.weight, share: all ? weight(i) / all : 0 }));
}

/** differences lists the fields in which two objects differ, as [path, before, after]. */
export function differences(before, after, path = "") {
  const plain = (x) => x !== null && typeof x === "object" && !Array.isArray(x);
  if (plain(before) && plain(after)) {
    return [...new Set([...Object.keys(before), ...Object.keys(after)])].flatMap((k) => differences(before[k], after[k], path ? `${path}.${k}` : k));
  }
  return JSON.stringify(before) === JSON.stringify(after) ? [] : [[path, before, after]];
}
