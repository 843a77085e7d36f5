// Code and formulas of an answer: a bar with the language and a button that copies, colours, and
// formulas as MathML. Both libraries are read when the first of their kind is shown; what they make
// goes through the same cleaner as the answer. Until then, and where they fail, the text stands.

import { toNodes } from "./markdown.js";
import { t } from "./texts.js";

const LONGEST = 50_000; // characters that are coloured
const LONGEST_FORMULA = 5_000;
const SPANS = { ALLOWED_TAGS: ["span"], ALLOWED_ATTR: ["class"] };
const FORMULA = { USE_PROFILES: { mathMl: true }, FORBID_ATTR: ["style", "href", "id"] };

let highlighter = null;
const colours = () =>
  (highlighter ??= import("./vendor/highlight.js").then((module) => module.default));

let typesetter = null;
/** Temml is a script that leaves a global. */
const typesetting = () =>
  (typesetter ??= new Promise((loaded, failed) => {
    const script = document.createElement("script");
    script.src = "/ui/vendor/temml.js";
    script.onload = () => loaded(globalThis.temml);
    script.onerror = failed;
    document.head.append(script);
  }));

/** A bar over each block of code; scrollable blocks are reached by the keyboard. */
export function dress(place) {
  for (const pre of place.querySelectorAll("pre")) {
    let bar = pre.previousElementSibling;
    if (!bar?.matches(".code-bar")) {
      bar = document.createElement("div");
      bar.className = "code-bar";
      bar.append(document.createElement("span"), document.createElement("button"));
      bar.lastChild.type = "button";
      pre.before(bar);
      pre.tabIndex = 0;
    }
    bar.firstChild.textContent = pre.dataset.language || t("code.plain");
    bar.lastChild.textContent = t("code.copy");
    bar.lastChild.ariaLabel = t("code.copy.label");
  }
}

/** A click on one of those buttons. */
export async function copyCode(event) {
  const button = event.target.closest(".code-bar button");
  if (!button) return;
  await navigator.clipboard.writeText(button.parentNode.nextElementSibling.textContent);
  button.textContent = t("copied");
  setTimeout(() => {
    button.textContent = t("code.copy");
  }, 1500);
}

/** Colours and formulas of an answer that has ended. */
export async function finish(place) {
  for (const pre of place.querySelectorAll("pre[data-language]:not([data-language=''])")) {
    const code = pre.firstChild;
    const text = code.textContent;
    if (text.length > LONGEST) continue;
    const library = await colours();
    const { language } = pre.dataset;
    if (!library.getLanguage(language) || code.textContent !== text) continue;
    const { value } = library.highlight(text, { language, ignoreIllegals: true });
    code.replaceChildren(toNodes(value, SPANS));
  }
  for (const one of place.querySelectorAll("[data-formula]")) {
    const text = one.textContent;
    if (text.length > LONGEST_FORMULA) continue;
    const displayMode = one.dataset.formula === "block";
    try {
      const made = document.createElement("span"); // of nodes, since styles in text are refused
      (await typesetting()).render(text, made, { displayMode, throwOnError: true });
      one.title = text;
      one.replaceChildren(toNodes(made, FORMULA));
      one.removeAttribute("data-formula");
    } catch {
      // no formula: its text stays
    }
  }
}
