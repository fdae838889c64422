// What a browser keeps for the page. It may forbid that; then the page forgets, and works.

type Where = "localStorage" | "sessionStorage";

export function remember(key: string, value: string | null, where: Where = "localStorage"): void {
  try {
    if (value === null) window[where].removeItem(key);
    else window[where].setItem(key, value);
  } catch { /* as said */ }
}

export function recall(key: string, where: Where = "localStorage"): string | null {
  try {
    return window[where].getItem(key);
  } catch {
    return null;
  }
}
