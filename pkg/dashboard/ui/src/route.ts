import { useEffect, useState } from "preact/hooks";

export interface Route {
  /** The first part of the hash, and the ones after it. */
  view: string;
  params: string[];
  /** Differs for each place. */
  key: string;
}

function read(): Route {
  const parts = location.hash.replace(/^#\/?/, "").split("/").map((p) => {
    try {
      return decodeURIComponent(p);
    } catch {
      return p;
    }
  });
  const [view = "", ...params] = parts;
  return { view, params, key: JSON.stringify(parts) };
}

/** useRoute follows the hash. */
export function useRoute(): Route {
  const [route, setRoute] = useState(read);
  useEffect(() => {
    const follow = (): void => setRoute(read());
    addEventListener("hashchange", follow);
    return () => removeEventListener("hashchange", follow);
  }, []);
  return route;
}
