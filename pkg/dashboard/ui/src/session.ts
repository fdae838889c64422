import { Api, Refusal } from "./api/client";
import type { EventData, Me, Role, Status } from "./api/types";
import { Samples, step } from "./model/samples";
import { recall, remember } from "./storage";

const slowest = 10_000;
const tokenKey = "difylb.token";
const keptEvents = 300;
const ranks: Role[] = ["viewer", "operator", "admin"];

/** Events after which what views have read may be old. */
const ageing = new Set(["configuration", "health", "reset"]);

export type EventType = keyof EventData;
export type FeedEvent = { [T in EventType]: { type: T; data: EventData[T]; at: string; n: number } }[EventType];

/** Why there is nobody signed in, when it was not the reader's wish. */
export type Ended = "" | "ended" | Error;

/**
 * Session is who is signed in, and all that comes by itself from then on: the
 * Status document every two seconds and the events. Whoever draws it
 * subscribes, and draws anew when told.
 */
export class Session {
  api: Api | null = null;
  me: Me | null = null;
  ended: Ended = "";
  status: Status | null = null;
  samples = new Samples();
  /** Grows with each Status document. */
  polls = 0;
  /** Grows when what was read besides the Status document has become old. */
  generation = 0;
  /** The newest first. */
  events: FeedEvent[] = [];
  following = false;
  /** Why the Status document is old. */
  lost: Error | null = null;
  /** For how long lb-admin has not heard from etcd; "" when it has. */
  stale = "";

  #life: AbortController | null = null;
  #ageing = false;
  #listeners = new Set<() => void>();

  /** subscribe has the listener called after each change. Returns what ends that. */
  subscribe(listener: () => void): () => void {
    this.#listeners.add(listener);
    return () => void this.#listeners.delete(listener);
  }

  /** may says whether the role allows what needs at least the given one; the server judges in any case. */
  may(need: Role): boolean {
    return this.me !== null && ranks.indexOf(this.me.role) >= ranks.indexOf(need);
  }

  /** begin signs in. Throws what speaks against it. */
  async begin(token: string): Promise<void> {
    const api = new Api(token);
    const me = await api.get<Me>("whoami");
    this.#reset();
    remember(tokenKey, token, "sessionStorage");
    Object.assign(this, { api, me });
    this.#life = new AbortController();
    void this.#poll(api, this.#life.signal);
    void this.#follow(api, this.#life.signal);
    this.#changed();
  }

  /** resume signs in with the token that the tab kept, if it did. */
  async resume(): Promise<void> {
    const token = recall(tokenKey, "sessionStorage");
    if (!token) return;
    for (;;) {
      try {
        return await this.begin(token);
      } catch (err) {
        if (err instanceof Refusal && err.status < 500) return this.end(err.status === 401 ? "ended" : err);
        this.ended = err as Error;
        this.#changed();
        await new Promise((resolve) => setTimeout(resolve, 3000));
        if (this.api) return; // signed in by hand meanwhile
      }
    }
  }

  /** end signs out. */
  end(why: Ended): void {
    this.#reset();
    this.ended = why;
    remember(tokenKey, null, "sessionStorage");
    this.#changed();
  }

  /** refuse takes an error that a call met, and signs out when the token has become void. Returns whether it has. */
  refuse(err: unknown): boolean {
    const void_ = err instanceof Refusal && err.status === 401;
    if (void_) this.end("ended");
    return void_;
  }

  /** reload says that what was read besides the Status document is old. */
  reload(): void {
    this.generation++;
    this.#changed();
  }

  /** age is reload for events: many within a moment count once. */
  #age(signal: AbortSignal): void {
    if (this.#ageing) return;
    this.#ageing = true;
    setTimeout(() => {
      this.#ageing = false;
      if (!signal.aborted) this.reload();
    }, 200);
  }

  #reset(): void {
    this.#life?.abort();
    Object.assign(this, { api: null, me: null, ended: "", status: null, samples: new Samples(), events: [], following: false, lost: null, stale: "" });
  }

  #changed(): void {
    for (const listener of this.#listeners) listener();
  }

  async #poll(api: Api, signal: AbortSignal): Promise<void> {
    for (let failures = 0; !signal.aborted; ) {
      const begun = performance.now();
      try {
        const status = await api.get<Status>("status", { signal, note: (headers) => (this.stale = headers.get("X-Config-Stale") ?? "") });
        this.samples.add(status, performance.now(), Date.now());
        this.status = status;
        this.polls++;
        if (failures > 0) this.generation++;
        failures = 0;
        this.lost = null;
      } catch (err) {
        if (signal.aborted || this.refuse(err)) return;
        failures++;
        this.samples.gap(Date.now());
        this.lost = err as Error;
      }
      this.#changed();
      // A document of ten thousand applications is not to be all that server and browser do.
      const calm = Math.max(step * 1000, 3 * (performance.now() - begun));
      await pause(Math.min(calm * 2 ** Math.max(0, failures - 1), slowest), signal);
    }
  }

  async #follow(api: Api, signal: AbortSignal): Promise<void> {
    for (let wait = 1000; !signal.aborted; wait = Math.min(wait * 2, slowest)) {
      try {
        await api.follow(signal, (type, data) => {
          wait = 1000;
          this.following = true;
          const at = (data as { time?: string }).time ?? new Date().toISOString();
          this.events = [{ type, data, at, n: (this.events[0]?.n ?? 0) + 1 } as FeedEvent, ...this.events].slice(0, keptEvents);
          if (ageing.has(type)) this.#age(signal);
          this.#changed();
        });
      } catch { /* the polling says what is wrong */ }
      if (signal.aborted) return;
      this.following = false;
      this.#changed();
      await pause(wait, signal);
    }
  }
}

function pause(ms: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    const end = (): void => {
      clearTimeout(timer);
      signal.removeEventListener("abort", end);
      resolve();
    };
    const timer = setTimeout(end, ms);
    signal.addEventListener("abort", end);
  });
}
