// How the page looks: the reader's wish, which a browser keeps, or the system's.
import { useEffect, useState } from "preact/hooks";
import { recall, remember } from "./storage";

export type Theme = "auto" | "light" | "dark";

const key = "difylb.theme";
const dark = matchMedia("(prefers-color-scheme: dark)");
const changed = new EventTarget();

export function theme(): Theme {
  const wish = document.documentElement.dataset.theme;
  return wish === "light" || wish === "dark" ? wish : "auto";
}

export function setTheme(wish: string | null): void {
  if (wish === "light" || wish === "dark") document.documentElement.dataset.theme = wish;
  else delete document.documentElement.dataset.theme;
  if (wish !== recall(key)) remember(key, wish);
  changed.dispatchEvent(new Event("change"));
}

export function recallTheme(): void {
  setTheme(recall(key));
}

/** useLook returns a word that changes with the colours, for what draws without a stylesheet. */
export function useLook(): string {
  const now = (): string => (theme() === "auto" ? (dark.matches ? "dark" : "light") : theme());
  const [look, setLook] = useState(now);
  useEffect(() => {
    const update = (): void => setLook(now());
    dark.addEventListener("change", update);
    changed.addEventListener("change", update);
    return () => {
      dark.removeEventListener("change", update);
      changed.removeEventListener("change", update);
    };
  }, []);
  return look;
}
