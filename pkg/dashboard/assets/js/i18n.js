import en from "./en.js";
import zh from "./zh.js";

const tables = { en, zh };

/** The languages there are, each by its own name. */
export const languages = { en: "English", zh: "中文" };

let current = "en";

/** choose takes the language, or without one the first of the browser's that there is. */
export function choose(lang) {
  const wanted = [lang, ...(navigator.languages ?? [navigator.language])].map((l) => String(l ?? "").slice(0, 2).toLowerCase());
  current = wanted.find((l) => tables[l]) ?? "en";
  document.documentElement.lang = current === "zh" ? "zh-CN" : "en";
}

export function language() {
  return current;
}

/** locale is for Intl. */
export function locale() {
  return current === "zh" ? "zh-CN" : "en";
}

/** t returns the text of the key, {name} replaced by vars.name. */
export function t(key, vars) {
  const text = tables[current][key] ?? tables.en[key] ?? key;
  return vars ? text.replace(/\{(\w+)\}/g, (whole, name) => (name in vars ? String(vars[name]) : whole)) : text;
}

/** word returns the text of a word that the server uses, or the word itself when it is new. */
export function word(group, value) {
  return tables[current][`${group}.${value}`] ?? String(value ?? "");
}
