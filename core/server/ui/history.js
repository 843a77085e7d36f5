// The conversations that the node keeps: which one this tab goes on with, how it stands on the
// page, and the list of all, to be searched, opened, saved and deleted. Keeps for this tab alone
// the conversation's name, and a message until it is answered.

import { html, useState } from "./vendor/htm-preact.js";
import { del, get } from "./api.js";
import { Icon } from "./parts.js";

const SOURCE = "page"; // as which the node keeps these conversations
const CURRENT = "conversation";
const UNANSWERED = "unanswered";

/** The name of this tab's conversation: a page that is loaded again goes on with it. */
export const currentConversation = () => sessionStorage.getItem(CURRENT) ?? newConversation();

/** A name for a conversation, under which the node keeps it. */
export function newConversation() {
  const bytes = crypto.getRandomValues(new Uint8Array(8));
  const hex = [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  return goOnWith(`page-${hex}`);
}

/** This tab's conversation is another one from now on. */
export function goOnWith(id) {
  sessionStorage.setItem(CURRENT, id);
  sessionStorage.removeItem(UNANSWERED);
  return id;
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


const address = (id) => `/api/conversations/${encodeURIComponent(id)}`;

/** One conversation with what was said in it. */
export const read = (id) => get(address(id));

/** All of them; what was said elsewhere is read and gone on with there. */
export function History({ onOpen, onDeleted }) {
  const [known, setKnown] = useState([]);
  const [sought, setSought] = useState("");
  const [told, setTold] = useState("");
  const act = (work) => work.catch((error) => setTold(error.message));
  const look = () => act(get("/api/conversations").then((body) => setKnown(body.conversations)));
  const open = (info, menu) =>
    act(
      read(info.id).then((whole) => {
        menu.open = false;
        onOpen(whole);
      }),
    );
  const remove = async ({ id, title }) => {
    const { adapters } = await del(address(id));
    const learned = adapters.length ? `, and ${adapters.length} adapters that learned from it` : "";
    setTold(`“${title}” is deleted${learned}.`);
    onDeleted(id);
    await look();
  };
  const words = sought.toLowerCase().split(/\s+/);
  const fits = ({ title, source }) =>
    words.every((word) => `${title} ${source}`.toLowerCase().includes(word));
  return html`<details class="tools history" onToggle=${look}>
    <summary title="Conversations that this node keeps"><${Icon} name="history" /></summary>
    <ul>
      <li><input type="search" placeholder="Search their first words" value=${sought}
        aria-label="Search conversations"
        onInput=${(event) => setSought(event.target.value)} /></li>
      ${told && html`<li role="status"><span>${told}</span></li>`}
      ${known.filter(fits).map(
        (info) => html`<${Kept} key=${info.id} info=${info} onOpen=${open}
          onSave=${() => act(save(info.id))} onDelete=${() => act(remove(info))} />`,
      )}
      ${!known.some(fits) &&
      html`<li><span>${known.length ? "None with these words." : "None yet."}</span></li>`}
    </ul>
  </details>`;
}

function Kept({ info, onOpen, onSave, onDelete }) {
  const [asked, setAsked] = useState(false);
  const when = new Date(info.at * 1000).toLocaleString();
  const here = info.source === SOURCE;
  const open = (event) => onOpen(info, event.target.closest("details"));
  return html`<li>
    <button class="small title" disabled=${!here} onClick=${open}
      title=${here ? "Go on with it" : `It was held in ${info.source}: go on there`}>
      ${info.title}
    </button>
    <span>${when}${!here && `, ${info.source}`}</span>
    ${asked
      ? html`<div class="choices" role="group" aria-label="Question before deleting">
          <button onClick=${onDelete}>Delete it, and what learned from it</button>
          <button onClick=${() => setAsked(false)}>Keep it</button>
        </div>`
      : html`<div>
          <button class="small" onClick=${onSave}>save</button>
          <button class="small" onClick=${() => setAsked(true)}>delete</button>
        </div>`}
  </li>`;
}

/** As a file of this machine, with all that the node kept of it. */
async function save(id) {
  const text = JSON.stringify(await read(id), null, 2);
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  link.download = `${id}.json`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000); // a browser may ask where to put it
}
