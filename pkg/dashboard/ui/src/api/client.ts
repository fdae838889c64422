const base = new URL("api/v1/", document.baseURI);

interface Problem {
  detail?: string;
  faults?: { path?: string; message: string }[];
}

/**
 * A Refusal is an answer of the server that is not a success. said holds what
 * the server says of it in its own words, and every fault, line by line.
 */
export class Refusal extends Error {
  readonly said: string[];

  constructor(readonly status: number, problem: Problem | null) {
    super(`status ${status}`);
    // The detail of a single fault is that fault.
    const faults = problem?.faults && problem.faults.length > 1 ? problem.faults.map((f) => [f.path, f.message].filter(Boolean).join(": ")) : [];
    this.said = [problem?.detail ?? "", ...faults].filter(Boolean);
  }
}

/** Unreachable: no answer came. */
export class Unreachable extends Error {}

export interface Options {
  signal?: AbortSignal;
  headers?: Record<string, string>;
  body?: unknown;
  note?: (headers: Headers) => void;
}

/** Api speaks for one access token. It keeps the token in its field and nowhere else. */
export class Api {
  #token: string;

  constructor(token: string) {
    this.#token = token;
  }

  /** call returns the answer's JSON. Throws Refusal, Unreachable, or the AbortError of the signal. */
  async call<T>(method: string, path: string, { signal, headers, body, note }: Options = {}): Promise<T> {
    const patience = AbortSignal.timeout(20_000);
    const content = body === undefined ? {} : { body: JSON.stringify(body), headers: { ...headers, "Content-Type": "application/json" } };
    const res = await this.#fetch(method, path, { headers, ...content, signal: signal ? AbortSignal.any([signal, patience]) : patience }, signal);
    note?.(res.headers);
    try {
      return (res.status === 204 ? null : await res.json()) as T;
    } catch {
      signal?.throwIfAborted();
      throw new Unreachable();
    }
  }

  get<T>(path: string, options?: Options): Promise<T> {
    return this.call<T>("GET", path, options);
  }

  /** all reads every page of a listing. */
  async all<T>(path: string, options?: Options): Promise<T[]> {
    const items: T[] = [];
    for (let next = ""; ; ) {
      const page: { items: T[]; continue?: string } = await this.get(`${path}?limit=500${next && `&continue=${encodeURIComponent(next)}`}`, options);
      items.push(...page.items);
      next = page.continue ?? "";
      if (!next) return items;
    }
  }

  /**
   * follow hands over each event of the stream, and returns when the stream
   * ends. EventSource is of no use: it can only send the token in the URL.
   */
  async follow(signal: AbortSignal, take: (type: string, data: unknown) => void): Promise<void> {
    const res = await this.#fetch("GET", "events", { headers: { Accept: "text/event-stream" }, signal }, signal);
    if (!res.body) return;
    const decoder = new TextDecoderStream();
    const reader = res.body.pipeThrough(decoder as unknown as TransformStream<Uint8Array, string>).getReader();
    let rest = "";
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const blocks = (rest + value).split("\n\n");
      rest = blocks.pop() ?? "";
      for (const block of blocks) {
        let type = "message";
        let data = "";
        for (const line of block.split("\n")) {
          const [, field, text = ""] = /^([^:]*):? ?(.*)$/.exec(line) ?? [];
          if (field === "event") type = text;
          if (field === "data") data += text;
        }
        if (data) take(type, JSON.parse(data));
      }
    }
  }

  async #fetch(method: string, path: string, options: RequestInit, signal?: AbortSignal): Promise<Response> {
    let res: Response;
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
    throw new Refusal(res.status, (await res.json().catch(() => null)) as Problem | null);
  }
}

/** path joins the parts of a path, each escaped. */
export function path(...parts: string[]): string {
  return parts.map(encodeURIComponent).join("/");
}
