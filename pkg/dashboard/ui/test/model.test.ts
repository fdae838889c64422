import assert from "node:assert/strict";
import { test } from "node:test";
import type { ApplicationStatus, Status } from "../src/api/types";
import { byWeight, differences, roundUp, roundUpBytes, together } from "../src/model/figures";
import { Samples, kept } from "../src/model/samples";

const quantiles = { p50: 40, p99: 90 };

function app(requests: number, more: Partial<ApplicationStatus> = {}): ApplicationStatus {
  const dify1 = { requests, errors: 0, retries: 0, active: 1, streams: 1, status: "healthy", state: "active" as const, bytes_in: requests * 10, bytes_out: requests * 100, last_error: null, since: "" };
  return { total_requests: requests, errors: 0, active: 1, instances: { dify1 }, latency_recent: quantiles, first_byte_recent: { p50: 20, p99: 30 }, ...more };
}

function status(applications: Record<string, ApplicationStatus>, complete = true): Status {
  return { revision: 1, complete, nodes: { proxies: 1, admins: 1, reporting: 1 }, applications };
}

test("rates are the growth between two documents", () => {
  const s = new Samples();
  s.add(status({ a: app(100), b: app(0) }), 0, 1_000_000);
  assert.equal(s.latest("a").requests, null, "one document tells no rate");
  s.add(status({ a: app(150), b: app(10) }), 2000, 1_002_000);
  assert.equal(s.latest("a").requests, 25);
  assert.equal(s.latest("a").out, 2500);
  assert.equal(s.latest().requests, 30);
  assert.deepEqual(s.series("a").requests, [null, 25]);
  assert.deepEqual(s.times, [1000, 1002]);
});

test("figures that come back or begin anew are no traffic", () => {
  const s = new Samples();
  s.add(status({ a: app(100) }), 0, 0);
  s.add(status({ a: app(900) }, false), 2000, 2000);
  assert.equal(s.latest("a").requests, null, "another completeness");
  s.add(status({ a: app(5) }, false), 4000, 4000);
  assert.equal(s.latest("a").requests, null, "the counter began anew");
  s.add(status({ a: app(5), b: app(1_000_000) }, false), 6000, 6000);
  assert.equal(s.latest().requests, 0, "an application that is new");
});

test("no line is drawn across a gap", () => {
  const s = new Samples();
  s.add(status({ a: app(1) }), 0, 0);
  s.add(status({ a: app(3) }), 2000, 2000);
  s.gap(4000);
  s.gap(6000);
  s.add(status({ a: app(1000) }), 9000, 9000);
  assert.deepEqual(s.series("a").requests, [null, 1, null, null]);
  assert.deepEqual(s.series("a").active, [1, 1, null, 1]);
});

test("all series are as long as the times, also of what comes late or has gone", () => {
  const s = new Samples();
  for (let i = 0; i < kept + 20; i++) {
    s.add(status({ a: app(i), ...(i > 100 && { late: app(i) }), ...(i < 40 && { gone: app(i) }), idle: app(0, { active: 0 }) }), i * 2000, i * 2000);
    for (const name of [undefined, "a", "late", "gone", "idle"]) {
      for (const list of Object.values(s.series(name))) assert.equal(list.length, s.times.length);
    }
  }
  assert.equal(s.times.length, kept);
  assert.deepEqual(new Set(s.series("idle").requests), new Set([0]));
  assert.deepEqual(new Set(s.series("gone").requests), new Set([null]));
});

test("the median of several is weighed, the 99th percentile that of the slowest", () => {
  const part = (p50: number | null, p99: number | null, weight: number) => ({ latency: { p50, p99, first50: p50, first99: p99 }, weight });
  assert.deepEqual(together([part(10, 100, 3), part(50, 80, 1), part(null, null, 9)]), { p50: 20, p99: 100, first50: 20, first99: 100 });
  assert.equal(together([part(10, 100, 0), part(50, 80, 0)]).p50, 30, "nothing in the last two seconds");
  assert.equal(together([]).p50, null);
});

test("weights become shares of those that are active", () => {
  const instance = (name: string, weight: number, state: "active" | "draining") => ({ name, weight, state });
  assert.deepEqual(byWeight([instance("a", 1, "active"), instance("b", 3, "active"), instance("c", 9, "draining")]).map((p) => p.share), [0.25, 0.75, 0]);
  assert.deepEqual(byWeight([instance("c", 9, "draining")]).map((p) => p.share), [0]);
});

test("differences name the fields", () => {
  assert.deepEqual(differences({ a: 1, b: { c: [1], d: 2 }, e: 3 }, { a: 1, b: { c: [1, 2], d: 2 }, f: 4 }), [["b.c", [1], [1, 2]], ["e", 3, undefined], ["f", undefined, 4]]);
});

test("axes of bytes end at a round number of their unit", () => {
  for (const [x, want] of [[0, 2], [900, 1000], [1010, 1024], [5000, 6 * 1024], [90_000, 100 * 1024], [3 * 2 ** 20, 4 * 2 ** 20]] as const) assert.equal(roundUpBytes(x), want, String(x));
});

test("axes end at a round number of which the half is round", () => {
  for (const [x, want] of [[0, 1], [NaN, 1], [0.3, 0.3], [0.31, 0.4], [1, 1], [1.1, 2], [3, 4], [9, 10], [47, 50], [99, 100], [110, 120], [2010, 3000]] as const) assert.equal(roundUp(x), want, String(x));
});
