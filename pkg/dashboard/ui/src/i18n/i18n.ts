import en from "./en.json";
import zh from "./zh.json";

/** The keys of all texts: TypeScript refuses one that is not there. */
export type Key = keyof typeof en;

// That zh has every key of en is checked here, and the other way round by a test.
const tables: Record<string, Record<Key, string>> = { en, zh };

/** The languages there are, each by its own name. */
export const languages: Record<string, string> = { en: "English", zh: "中文" };

let current = "en";

/** choose takes the language, or without one the first of the browser's that there is. */
export function choose(lang: string | null): void {
  const wanted = [lang, ...navigator.languages].map((l) => String(l ?? "").slice(0, 2).toLowerCase());
  current = wanted.find((l) => l in tables) ?? "en";
  document.documentElement.lang = locale();
}

export function language(): string {
  return current;
}

/** locale is for Intl. */
export function locale(): string {
  return current === "zh" ? "zh-CN" : "en";
}

/** t returns the text of the key, {name} replaced by vars.name. */
export function t(key: Key, vars?: Record<string, string | number>): string {
  const text = tables[current]?.[key] ?? en[key];
  return vars ? text.replace(/\{(\w+)\}/g, (whole, name: string) => String(vars[name] ?? whole)) : text;
}

/** word returns the text of a word that the server uses, or the word itself when it is new. */
export function word(group: string, value: string | undefined): string {
  return (tables[current] as Record<string, string>)[`${group}.${value}`] ?? value ?? "";
}
