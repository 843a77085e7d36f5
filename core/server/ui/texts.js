// What the page says, in its reader's language: one file a language, with the same keys in each.
// Knows keys, numbers and plurals. Whatever stands for a {name} is text, never HTML.

export const LANGUAGES = { en: "English", de: "Deutsch" };
const KEY = "language";
let words = {};
export let language = "en";

/** As the reader chose, or else as the browser prefers. */
function preferred() {
  const given = [localStorage.getItem(KEY), ...navigator.languages];
  return given.map((one) => one?.slice(0, 2)).find((one) => one in LANGUAGES) ?? language;
}

/** Read a language's texts; from then on the page speaks it. */
export async function speak(wanted = preferred()) {
  words = await (await fetch(`/ui/texts/${wanted}.json`)).json();
  language = wanted;
  document.documentElement.lang = wanted;
}

/** The same, and from now on whenever this browser opens the page. */
export function choose(wanted) {
  localStorage.setItem(KEY, wanted);
  return speak(wanted);
}

const told = (value) => (typeof value === "number" ? value.toLocaleString(language) : value);

function template(key, values) {
  const found = words[key];
  if (typeof found !== "object") return found;
  if (values.count === 0 && found.zero) return found.zero;
  return found[new Intl.PluralRules(language).select(values.count)] ?? found.other;
}

/** A text; `count` chooses between singular and plural. */
export const t = (key, values = {}) =>
  template(key, values).replace(/\{(\w+)\}/g, (_, name) => told(values[name]));

/**
 * A text of a key that the node gave, or what the node said where there is none, or where the text
 * wants something that the node did not give.
 */
export function known(key, otherwise, values = {}) {
  if (!Object.hasOwn(words, key)) return otherwise;
  const wanted = JSON.stringify(words[key]).matchAll(/\{(\w+)\}/g);
  return [...wanted].every(([, name]) => name in values) ? t(key, values) : otherwise;
}

/** A text with elements in it: a list of strings and of what was given. */
export const rich = (key, values) =>
  template(key, values)
    .split(/\{(\w+)\}/)
    .map((part, index) => (index % 2 ? told(values[part]) : part));

/** A day with its time, of seconds since 1970. */
export const moment = (seconds) =>
  new Date(seconds * 1000).toLocaleString(language, { dateStyle: "medium", timeStyle: "short" });

/** A number of bytes, in kilobytes of 1000 bytes and more. */
export function size(bytes) {
  const units = ["kilobyte", "megabyte", "gigabyte"];
  const step = Math.min(2, Math.max(0, Math.floor(Math.log10(Math.max(1, bytes)) / 3) - 1));
  return new Intl.NumberFormat(language, {
    style: "unit", unit: units[step], maximumFractionDigits: 1,
  }).format(bytes / 1000 ** (step + 1));
}
