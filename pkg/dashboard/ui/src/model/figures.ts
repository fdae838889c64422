// Figures that are made out of others. Nothing here touches the page.
import type { InstanceDeclaration, Quantiles } from "../api/types";

export function sum<T>(list: T[], get: (x: T) => number): number {
  return list.reduce((n, x) => n + get(x), 0);
}

/** takesUsers says whether an instance with this status is given new requests. */
export function takesUsers(status: string | undefined): boolean {
  return status === "healthy" || status === "unknown";
}

export interface Latency {
  p50: number | null;
  p99: number | null;
  first50: number | null;
  first99: number | null;
}

/** latency is that of the last minute; null is none. */
export function latency(of: { latency_recent?: Quantiles; first_byte_recent?: Quantiles }): Latency {
  const { latency_recent: all, first_byte_recent: first } = of;
  return { p50: all?.p50 || null, p99: all?.p99 || null, first50: first?.p50 || null, first99: first?.p99 || null };
}

/**
 * together is the latency of several applications. Quantiles cannot be added
 * up: the median is their mean by weight, the 99th percentile that of the
 * slowest, which is an upper bound.
 */
export function together(parts: { latency: Latency; weight: number }[]): Latency {
  const mean = (get: (l: Latency) => number | null): number | null => {
    const known = parts.filter(({ latency }) => get(latency) !== null);
    const all = sum(known, ({ weight }) => weight);
    return known.length ? sum(known, ({ latency, weight }) => (get(latency) ?? 0) * (all ? weight / all : 1 / known.length)) : null;
  };
  const most = (get: (l: Latency) => number | null): number | null => parts.reduce<number | null>((top, { latency }) => (get(latency) === null ? top : Math.max(top ?? 0, get(latency) ?? 0)), null);
  return { p50: mean((l) => l.p50), p99: most((l) => l.p99), first50: mean((l) => l.first50), first99: most((l) => l.first99) };
}

export interface Part {
  name: string;
  share: number;
}

/** byWeight returns each instance's part of the weights of those on the ring, which is all with state active. */
export function byWeight(instances: InstanceDeclaration[]): Part[] {
  const weight = (i: InstanceDeclaration): number => (i.state === "active" ? i.weight : 0);
  const all = sum(instances, weight);
  return instances.map((i) => ({ name: i.name, share: all ? weight(i) / all : 0 }));
}

export function address(i: InstanceDeclaration): string {
  return i.url ?? `${i.host}:${i.port}`;
}

/** differences lists the fields in which two objects differ, as [path, before, after]. */
export function differences(before: unknown, after: unknown, path = ""): [string, unknown, unknown][] {
  if (plain(before) && plain(after)) {
    return [...new Set([...Object.keys(before), ...Object.keys(after)])].flatMap((k) => differences(before[k], after[k], path ? `${path}.${k}` : k));
  }
  return JSON.stringify(before) === JSON.stringify(after) ? [] : [[path, before, after]];
}

function plain(x: unknown): x is Record<string, unknown> {
  return x !== null && typeof x === "object" && !Array.isArray(x);
}

/** roundUpBytes is roundUp for what is counted in powers of 1,024. */
export function roundUpBytes(x: number): number {
  let unit = 1;
  while (x >= unit * 1000 && unit < 2 ** 40) unit *= 1024;
  return unit === 1 ? Math.max(2, roundUp(x)) : roundUp(x / unit) * unit;
}

/** roundUp returns a round number at or above x, of which the half is round too; below ten both are whole, or x is below one. */
export function roundUp(x: number): number {
  if (!(x > 0)) return 1;
  const p = 10 ** Math.floor(Math.log10(x));
  const steps = p === 1 ? [1, 2, 4, 6, 8] : [1, 1.2, 1.6, 2, 3, 4, 5, 6, 8];
  return Number((p * (steps.find((m) => m * p >= x * 0.999) ?? 10)).toPrecision(2));
}
