// What the owner makes of an answer, and what the conversation may train: two small buttons, a line
// for a correction, and one choice. Says what was chosen; keeps nothing.

import { html, useState } from "./vendor/htm-preact.js";
import { Icon } from "./parts.js";
import { known, t } from "./texts.js";

/** Good, or bad; after "bad", what it should have been. `onVerdict` gives a promise of words. */
export function Verdict({ onVerdict }) {
  const [given, setGiven] = useState("");
  const [told, setTold] = useState("");
  const judge = (verdict, answer) =>
    onVerdict(verdict, answer).then((words) => {
      setGiven(verdict);
      setTold(words);
    });
  const correct = (event) => {
    event.preventDefault();
    const answer = event.target.elements.answer.value.trim();
    if (answer) judge("corrected", answer);
  };
  const button = (verdict, title) => html`
    <button class="small" onClick=${() => judge(verdict)} title=${title} aria-label=${title}
      aria-pressed=${given === verdict}>
      <${Icon} name=${verdict} />
    </button>
  `;
  return html`
    ${button("up", t("verdict.up"))} ${button("down", t("verdict.down"))}
    ${given === "down" &&
    html`<form class="correction" onSubmit=${correct}>
      <input name="answer" placeholder=${t("verdict.correction")} autocomplete="off"
        aria-label=${t("verdict.correction.label")} />
    </form>`}
    ${told && html`<span role="status">${t(told)}</span>`}
  `;
}

/** What the conversation may train; the choices come from the node. */
export function Consent({ destinations, consent, onConsent }) {
  const names = Object.entries(destinations);
  if (names.length < 2) return null;
  return html`<label class="picker" title=${t("consent.title")}>
    <span class="picker-label">${t("consent.trains")}</span>
    <select aria-label=${t("consent.label")} value=${consent}
      onChange=${(event) => onConsent(event.target.value)}>
      ${names.map(
        ([id, name]) =>
          html`<option value=${id} selected=${id === consent}>
            ${known(`consent.${id}`, t("consent.federation", { name }))}
          </option>`,
      )}
    </select>
  </label>`;
}
