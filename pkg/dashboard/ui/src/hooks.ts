import { createContext } from "preact";
import { useCallback, useContext, useEffect, useRef, useState } from "preact/hooks";
import type { Api } from "./api/client";
import { Session } from "./session";

const Current = createContext(new Session());

export const SessionProvider = Current.Provider;

/** useSession returns the session, and draws the component anew when it changes. */
export function useSession(): Session {
  const session = useContext(Current);
  const [, draw] = useState(0);
  useEffect(() => session.subscribe(() => draw((n) => n + 1)), [session]);
  return session;
}

export interface Loaded<T> {
  data: T | null;
  fault: Error | null;
  /** Reads again, after a fault. */
  retry: () => void;
  /** Puts other data in place, such as a further page. */
  set: (data: T) => void;
}

/**
 * useLoaded reads what the Status document does not hold: when the component
 * begins, when the session says that it became old, and with live after each
 * Status document. What was read stays until it is replaced. load may differ
 * from call to call; the one of the newest call is taken.
 */
export function useLoaded<T>(load: (api: Api, signal: AbortSignal) => Promise<T>, live = false): Loaded<T> {
  const session = useSession();
  const [state, setState] = useState<{ data: T | null; fault: Error | null }>({ data: null, fault: null });
  const [attempt, setAttempt] = useState(0);
  const newest = useRef(load);
  newest.current = load;
  const running = useRef<AbortController | null>(null);
  const { api, generation, polls } = session;

  const read = useCallback(async (quiet: boolean): Promise<void> => {
    if (!api) return;
    const mine = new AbortController();
    running.current = mine;
    try {
      const data = await newest.current(api, mine.signal);
      if (!mine.signal.aborted) setState({ data, fault: null });
    } catch (err) {
      if (mine.signal.aborted || session.refuse(err)) return;
      if (!quiet) setState(({ data }) => ({ data, fault: err as Error }));
    } finally {
      if (running.current === mine) running.current = null;
    }
  }, [api, session]);

  useEffect(() => {
    void read(false);
    return () => running.current?.abort();
  }, [read, generation, attempt]);

  useEffect(() => {
    // A failure shows in the banner of the session; a slow server is not asked twice at a time.
    if (live && polls > 0 && !running.current) void read(true);
  }, [live, polls, read]);

  return { ...state, retry: () => setAttempt((n) => n + 1), set: (data) => setState({ data, fault: null }) };
}
