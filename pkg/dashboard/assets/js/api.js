import { t, word } from "./i18n.js";

const base = new URL("api/v1/", document.baseURI);

/**
 * A Refusal is an answer of the server that is not a success. The message says
 * what kind it is in the reader's language; said holds what the server says
 * of it, and every fault, line by line.
 */
export class Refusal extends Error {
  constructor(status, problem, after) {
    const kind = word("error", status);
    super(kind === String(status) ? t("error.status", { status }) : kind);
    this.status = status;
    this.after = after;
    // The detail of a single fault is that fault.
    const faults = problem?.faults?.length > 1 ? problem.faults.map((f) => [f.path, f.message].filter(Boolean).join(": ")) : [];
    this.said = [problem?.detail ?? "", ...faults].filter(Boolean);
  }
}

/** Unreachable: no answer came. */
export class Unreachable extends Error {
  constructor() {
    super(t("error.unreachable"));
  }
}

/** Api speaks for one access token. It keeps the token in its field and nowhere else. */
export class Api {
  #token;

  constructor(token) {
    this.#token = token;
  }

  /** call returns the answer's JSON. Throws Refusal, Unreachable, or the AbortError of the signal. */
  async call(method, path, { signal, headers, body, note } = {}) {
    const patience = AbortSignal.timeout(20_000);
    const content = body === undefined ? {} : { body: JSON.stringify(body), headers: { ...headers, "Content-Type": "application/json" } };
    const res = await this.#fetch(method, path, { headers, ...content, signal: signal ? AbortSignal.any([signal, patience]) : patience }, signal);
    note?.(res.headers);
    try {
      return res.status === 204 ? null : await res.json();
    } catch {
      signal?.throwIfAborted();
      throw new Unreachable();
    }
  }

  get(path, options) {
    return this.call("GET", path, options);
  }

  /** all reads every page of a listing. */
  async all(path, options) {
    const items = [];
    for (let next = ""; ; ) {
      const page = await this.get(`${path}?limit=500${next && `&continue=${encodeURIComponent(next)}`}`, options);
      items.push(...page.items);
      next = page.continue ?? "";
      if (!next) return items;
    }
  }

  /**
   * follow hands over each event of the stream, and returns when the stream
   * ends. EventSource is of no use: it can only send the token in the URL.
   */
  async follow(signal, take) {
    const res = await this.#fetch("GET", "events", { headers: { Accept: "text/event-stream" }, signal }, signal);
    const reader = res.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const blocks = (rest + value).split("\n\n");
      rest = blocks.pop();
      for (const block of blocks) {
        const event = { type: "message", data: "" };
        for (const line of block.split("\n")) {
          const [, field, text] = /^([^:]*):? ?(.*)$/.exec(line);
          if (field === "event") event.type = text;
          if (field === "data") event.data += text;
        }
        if (event.data) take(event.type, JSON.parse(event.data));
      }
    }
  }

  async #fetch(method, path, options, signal) {
    let res;
    try {
      res = await fetch(new URL(path, base), {
        ...options, method, cache: "no-store", credentials: "omit", redirect: "error",
        headers: { ...options.headers, Authorization: `Bearer ${this.#token}` },
      });
    } catch {
      signal?.throwIfAborted();
      throw new Unreachable();
    }
    if (res.ok) return res;
    throw new Refusal(res.status, await res.json().catch(() => null), Number(res.headers.get("Retry-After")) || 0);
  }
}

/** path joins the parts of a path, each escaped. */
export function path(...parts) {
  return parts.map(encodeURIComponent).join("/");
}
