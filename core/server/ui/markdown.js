// Markdown into HTML that can do nothing: no scripts, no styles, no pictures, no forms.
// A model's words are untrusted, and so are a tool's; the page's policy (CSP) stands behind this
// as a second wall.

import { marked } from "./vendor/marked.js";
import "./vendor/purify.js"; // no module: it leaves a global

const { DOMPurify } = globalThis;
const MARKS = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" };
const asText = ({ text }) => text.replace(/[&<>"]/g, (letter) => MARKS[letter]);
// a form's box is no part of an answer; a sign is
const asSign = ({ checked }) =>
  `<span role="img" aria-label="${checked ? "done" : "to do"}">${checked ? "☑" : "☐"}</span> `;
// HTML in an answer is shown, not obeyed
marked.use({ gfm: true, breaks: true, renderer: { html: asText, checkbox: asSign } });

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
