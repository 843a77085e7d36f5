// The conversations that the node keeps: which one this tab goes on with, how it stands on the
// page, and the list of all, to be searched, opened, renamed, saved and deleted. Keeps for this tab
// alone the conversation's name, its settings and a message until the node has them.

import { html, useEffect, useRef, useState } from "./vendor/htm-preact.js";
import { del, get, post } from "./api.js";
import { Icon, Menu } from "./parts.js";
import { moment, t } from "./texts.js";

const SOURCE = "page"; // as which the node keeps these conversations
const CURRENT = "conversation";
const SETTINGS = "settings";
const UNANSWERED = "unanswered";
const PAUSE_MS = 200; // of typing, before it is looked for

/** The name of this tab's conversation: a page that is loaded again goes on with it. */
export const currentConversation = () => sessionStorage.getItem(CURRENT) ?? newConversation();

/** A name for a conversation, under which the node keeps it. */
export function newConversation() {
  const bytes = crypto.getRandomValues(new Uint8Array(8));
  const hex = [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  return goOnWith(`page-${hex}`);
}

/** This tab's conversation is another one from now on. */
export function goOnWith(id, settings = {}) {
  sessionStorage.setItem(CURRENT, id);
  sessionStorage.removeItem(UNANSWERED);
  keepSettings(settings);
  return id;
}

/** The node keeps a message with its answer; until then this tab does. "" when it is answered. */
export const keepUnanswered = (text) => sessionStorage.setItem(UNANSWERED, text);

/** How this tab's conversation is to be answered, which the node may not know yet. */
export const keepSettings = (settings) =>
  sessionStorage.setItem(SETTINGS, JSON.stringify(settings));
export const currentSettings = () => JSON.parse(sessionStorage.getItem(SETTINGS) ?? "{}");

/** The node's conversation as the page shows it: one answer from one message to the next. */
export function asShown(said) {
  const shown = [];
  for (const { role, content, thought = "", calls = [] } of said) {
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
      answer.thought += thought;
      answer.calls.push(...made);
    } else shown.push({ role, text: content, thought, calls: made, state: "done" });
  }
  const asked = sessionStorage.getItem(UNANSWERED);
  // the node may have kept it when the page had not yet seen the answer's end
  if (!asked || shown.findLast(({ role }) => role === "user")?.text === asked) return shown;
  const stopped = { role: "assistant", text: "", calls: [], state: "stopped" };
  return [...shown, { role: "user", text: asked }, stopped];
}

/** How the node's conversation is answered: as stands with it, where "" is a system prompt that was
 * taken away; if nothing does, by the one that was said in it. */
export const settingsOf = ({ settings, messages }) => ({
  system: messages.find(({ role }) => role === "system")?.content,
  ...settings,
});

const address = (id) => `/api/conversations/${encodeURIComponent(id)}`;

/** One conversation with what was said in it. */
export const read = (id) => get(address(id));

/** Change its title, its settings or what it may train. */
export const change = (id, wanted) => post(address(id), wanted);

/** A further branch of it, which ends before the user's `turn`-th message. */
export const branch = (id, turn) => post(`${address(id)}/branches`, { turn });

/** All of them; what was said elsewhere is read and gone on with there. */
export function History({ current, onOpen, onDeleted }) {
  const [kept, setKept] = useState([]);
  const [sought, setSought] = useState("");
  const [found, setFound] = useState(null); // null: all
  const [told, setTold] = useState("");
  const waiting = useRef(0);
  const act = (work) => work.catch((error) => setTold(error.message));
  const look = () => act(get("/api/conversations").then((body) => setKept(body.conversations)));
  const search = (words) => {
    setSought(words);
    clearTimeout(waiting.current);
    waiting.current = setTimeout(() => {
      if (!words.trim()) return setFound(null);
      act(post("/api/conversations", { words }).then((body) => setFound(new Set(body.found))));
    }, PAUSE_MS);
  };
  useEffect(() => () => clearTimeout(waiting.current), []);
  const open = (info, menu) =>
    act(
      read(info.id).then((whole) => {
        menu.open = false;
        onOpen(whole);
      }),
    );
  const remove = async ({ id, root, title }) => {
    const { adapters } = await del(address(id));
    setTold(t("history.deleted", { title, count: adapters.length }));
    onDeleted(root);
    await look();
  };
  const rename = (info, title) => act(change(info.id, { title }).then(look));
  // of each conversation the branch that is open, or else the one in which something was said last
  const branches = Map.groupBy(kept, ({ root }) => root);
  const shown = [...branches.values()].flatMap((ones) => {
    const fitting = ones.filter(({ id }) => !found || found.has(id));
    const info = fitting.find(({ id }) => id === current) ?? fitting[0];
    return info ? [{ ...info, branches: ones.length }] : [];
  });
  return html`<${Menu} kind="history" icon="history" title=${t("history.title")} onToggle=${look}>
    <ul>
      <li><input type="search" placeholder=${t("history.search")} value=${sought}
        aria-label=${t("history.search")} onInput=${(event) => search(event.target.value)} /></li>
      ${told && html`<li role="status"><span>${told}</span></li>`}
      ${shown.map(
        (info) => html`<${Kept} key=${info.root} info=${info} onOpen=${open}
          onSave=${(format) => act(save(info.id, format))}
          onRename=${(title) => rename(info, title)} onDelete=${() => act(remove(info))} />`,
      )}
      ${!shown.length &&
      html`<li><span>${t(kept.length ? "history.none.found" : "history.none")}</span></li>`}
    </ul>
  <//>`;
}

function Kept({ info, onOpen, onSave, onRename, onDelete }) {
  const [asked, setAsked] = useState(""); // "delete", "rename" or nothing
  const here = info.source === SOURCE;
  const open = (event) => onOpen(info, event.target.closest("details"));
  const rename = (event) => {
    event.preventDefault();
    onRename(event.target.elements.title.value);
    setAsked("");
  };
  const about = [
    moment(info.latest),
    !here && info.source,
    info.branches > 1 && t("history.branches", { count: info.branches }),
  ];
  if (asked === "rename") {
    return html`<li><form onSubmit=${rename}>
      <input name="title" maxlength="80" defaultValue=${info.title} required
        aria-label=${t("history.rename.label")}
        ref=${(field) => field?.focus()} />
      <button class="small">${t("history.rename.done")}</button>
      <button class="small" type="button" onClick=${() => setAsked("")}>${t("cancel")}</button>
    </form></li>`;
  }
  return html`<li>
    <button class="small title" disabled=${!here} onClick=${open}
      title=${here ? t("history.open") : t("history.elsewhere", { source: info.source })}>
      ${info.title}
    </button>
    <span>${about.filter(Boolean).join(", ")}</span>
    ${asked === "delete"
      ? html`<div class="choices" role="group" aria-label=${t("history.delete.question")}>
          <button onClick=${onDelete}>${t("history.delete.yes", { count: info.branches })}</button>
          <button onClick=${() => setAsked("")}>${t("history.delete.no")}</button>
        </div>`
      : html`<div role="group" aria-label=${info.title}>
          <button class="small" onClick=${() => setAsked("rename")}>${t("history.rename")}</button>
          <button class="small" onClick=${() => onSave("markdown")}>
            ${t("history.save.markdown")}
          </button>
          <button class="small" onClick=${() => onSave("json")}>${t("history.save.json")}</button>
          <button class="small" onClick=${() => setAsked("delete")}>${t("history.delete")}</button>
        </div>`}
  </li>`;
}

/** A file of this machine: JSON with all that the node kept of it, or Markdown to be read. */
async function save(id, format) {
  const whole = await read(id);
  const [text, type, end] =
    format === "json"
      ? [JSON.stringify(whole, null, 2), "application/json", "json"]
      : [asMarkdown(whole), "text/markdown", "md"];
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type }));
  link.download = `${id}.${end}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000); // a browser may ask where to put it
}

function asMarkdown({ title, at, messages }) {
  const parts = messages.map(({ role, content, calls = [] }) => {
    const fence = "`".repeat(Math.max(3, 1 + longestRun(JSON.stringify(calls))));
    const called = calls.map((call) => `${fence}json\n${JSON.stringify(call, null, 2)}\n${fence}`);
    return [`## ${t(`role.${role}`)}`, ...called, content].filter(Boolean).join("\n\n");
  });
  return `${[`# ${title}`, moment(at), ...parts].join("\n\n")}\n`;
}

const longestRun = (text) => Math.max(0, ...(text.match(/`+/g) ?? []).map((run) => run.length));

/** From one branch to the next where several go on from the same place. */
export function Variants({ ids, current, disabled, onOpen }) {
  const place = ids.indexOf(current);
  const step = (by, name, icon) => html`<button class="small" title=${t(name)}
    aria-label=${t(name)} disabled=${disabled || !ids[place + by]}
    onClick=${() => onOpen(ids[place + by])}><${Icon} name=${icon} /></button>`;
  return html`<span class="variants" role="group" aria-label=${t("branch.label")}>
    ${step(-1, "branch.before", "before")}
    <span>${t("branch.place", { place: place + 1, count: ids.length })}</span>
    ${step(1, "branch.next", "next")}
  </span>`;
}
