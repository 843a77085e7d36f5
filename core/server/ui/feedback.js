// The conversation that the node keeps, what its owner makes of an answer, and what it may train:
// two small buttons, a line for a correction, and one choice. Says what was chosen. Keeps for this
// tab alone the conversation's name, and a message until it is answered.

import { html, useState } from "./vendor/htm-preact.js";
import { Icon } from "./parts.js";

const CURRENT = "conversation";
const UNANSWERED = "unanswered";

/** The name of this tab's conversation: a page that is loaded again goes on with it. */
export const currentConversation = () => sessionStorage.getItem(CURRENT) ?? newConversation();

/** A name for a conversation, under which the node keeps it. */
export function newConversation() {
  const bytes = crypto.getRandomValues(new Uint8Array(8));
  const hex = [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  sessionStorage.setItem(CURRENT, `page-${hex}`);
  sessionStorage.removeItem(UNANSWERED);
  return `page-${hex}`;
}

/** The node keeps a message with its answer; until then this tab does. "" when it is answered. */
export const keepUnanswered = (text) => sessionStorage.setItem(UNANSWERED, text);

/** The node's conversation as the page shows it: one answer from one message to the next. */
export function asShown(said) {
  const shown = [];
  for (const { role, content, calls = [] } of said) {
    if (role === "user") shown.push({ role, text: content });
    const answer = shown.at(-1);
    if (role === "tool") {
      const open = answer?.calls?.find(({ result }) => !result);
      if (open) open.result = { content };
    }
    if (role !== "assistant") continue;
    const made = calls.map((call) => ({ ...call, id: crypto.randomUUID(), kept: true }));
    if (answer?.role === role) {
      answer.text += content;
      answer.calls.push(...made);
    } else shown.push({ role, text: content, calls: made, state: "done" });
  }
  const asked = sessionStorage.getItem(UNANSWERED);
  // the node may have kept it when the page had not yet seen the answer's end
  if (!asked || shown.findLast(({ role }) => role === "user")?.text === asked) return shown;
  const stopped = { role: "assistant", text: "", calls: [], state: "stopped" };
  return [...shown, { role: "user", text: asked }, stopped];
}

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
  const button = (verdict, name, title) => html`
    <button class="small" onClick=${() => judge(verdict)} title=${title} aria-label=${title}
      aria-pressed=${given === verdict}>
      <${Icon} name=${name} />
    </button>
  `;
  return html`
    ${button("up", "up", "A good answer")} ${button("down", "down", "A bad answer")}
    ${given === "down" &&
    html`<form class="correction" onSubmit=${correct}>
      <input name="answer" placeholder="What should it have been?" autocomplete="off"
        aria-label="The right answer" />
    </form>`}
    ${told && html`<span role="status">${told}</span>`}
  `;
}

/** What the conversation may train; the choices come from the node. */
export function Consent({ destinations, consent, onConsent }) {
  const names = Object.entries(destinations);
  if (names.length < 2) return null;
  return html`<label class="picker" title="What this conversation may train">
    <span class="picker-label">trains</span>
    <select aria-label="May train" value=${consent}
      onChange=${(event) => onConsent(event.target.value)}>
      ${names.map(
        ([id, name]) =>
          html`<option value=${id} selected=${id === consent}>
            ${id === "never" ? "nothing" : name}
          </option>`,
      )}
    </select>
  </label>`;
}
