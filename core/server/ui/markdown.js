// Markdown into HTML that can do nothing: no scripts, no styles, no pictures, no forms.
// A model's words are untrusted, and so are a tool's; the page's policy (CSP) stands behind this
// as a second wall. Languages of code and formulas are marked, for `blocks.js`.

import { marked } from "./vendor/marked.js";
import "./vendor/purify.js"; // no module: it leaves a global
import { t } from "./texts.js";

const { DOMPurify } = globalThis;
const MARKS = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" };
const escaped = (text) => text.replace(/[&<>"]/g, (letter) => MARKS[letter]);
// HTML in an answer is shown, not obeyed
const html = ({ text }) => escaped(text);
// a form's box is no part of an answer; a sign is
const checkbox = ({ checked }) =>
  `<span role="img" aria-label="${escaped(t(checked ? "task.done" : "task.open"))}">` +
  `${checked ? "☑" : "☐"}</span> `;
const code = ({ text, lang }) => {
  const [language] = (lang ?? "").split(/\s/);
  return `<pre data-language="${escaped(language)}"><code>${escaped(text)}</code></pre>`;
};

/**
 * A formula, as models write it: $…$ and \(…\) in a line, $$…$$ and \[…\] for themselves. "$5 or
 * $6" is none: a dollar sign opens before no space, and closes after none and before no digit.
 */
const formula = (name, level, begin, rule) => ({
  name,
  level,
  start: (text) => text.match(begin)?.index,
  tokenizer(text) {
    const found = rule.exec(text);
    const tex = found?.slice(1).find((one) => one !== undefined);
    return tex && { type: name, raw: found[0], text: tex };
  },
  renderer: ({ text }) =>
    `<span data-formula="${level}">${escaped(text.trim())}</span>${level === "block" ? "\n" : ""}`,
});
const BLOCK = /^ {0,3}(?:\$\$([^$]+?)\$\$|\\\[([^]+?)\\\])[^\S\n]*(?:\n|$)/;
const WAYS = [
  /\$\$([^$\n]+?)\$\$/,
  /\\\[([^\n]+?)\\\]/,
  /\\\(([^\n]+?)\\\)/,
  /\$(?![\s$])((?:\\.|[^\\$\n`])*[^\\$\s`])\$(?!\d)/,
];
const INLINE = new RegExp(`^(?:${WAYS.map(({ source }) => source).join("|")})`);
marked.use({
  gfm: true,
  breaks: true,
  renderer: { html, checkbox, code },
  extensions: [
    formula("formulaBlock", "block", /(?<=\n) {0,3}(?:\$\$|\\\[)/, BLOCK),
    formula("formula", "inline", /\$|\\[([]/, INLINE),
  ],
});

DOMPurify.addHook("afterSanitizeAttributes", (node) => {
  if (node.tagName === "A") {
    node.setAttribute("target", "_blank");
    node.setAttribute("rel", "noopener noreferrer nofollow");
  }
});

const RULES = {
  USE_PROFILES: { html: true },
  FORBID_TAGS: [
    "style", "img", "picture", "video", "audio", "source", "form", "input", "button", "textarea",
    "select",
  ],
  FORBID_ATTR: ["style", "class", "id", "name"],
};

export function toHtml(text) {
  return DOMPurify.sanitize(marked.parse(text), RULES);
}

/** What a library of ours made, as nodes that hold these elements and attributes alone. */
export const toNodes = (made, rules) =>
  DOMPurify.sanitize(made, { ...rules, RETURN_DOM_FRAGMENT: true });
