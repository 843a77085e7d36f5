// What stands on the page, piece by piece. Each part shows what it is given and says what was
// clicked.

import {
  html, useEffect, useLayoutEffect, useMemo, useRef, useState,
} from "./vendor/htm-preact.js";
import { copyCode, dress, finish } from "./blocks.js";
import { toHtml } from "./markdown.js";
import { known, language, rich, t } from "./texts.js";

const ICONS = {
  page: "M7 3h7l4 4v14H7zM14 3v4h4M10 12h5m-5 4h5",
  history: "M4 12a8 8 0 1 0 2.5-5.8M4 5v5h5M12 8v4l3 2",
  memory: "M7 4h10v16l-5-4-5 4z",
  send: "M12 19V5m0 0-6 6m6-6 6 6",
  stop: "M8 8h8v8H8z",
  sun:
    "M12 3v2m0 14v2M3 12h2m14 0h2M5.6 5.6l1.5 1.5m9.8 9.8 1.5 1.5" +
    "M5.6 18.4l1.5-1.5m9.8-9.8 1.5-1.5M12 8a4 4 0 1 0 0 8 4 4 0 0 0 0-8",
  moon: "M20 14.5A8.5 8.5 0 0 1 9.5 4a8.5 8.5 0 1 0 10.5 10.5",
  copy: "M9 9h10v11H9zM5 15V4h10",
  check: "m5 12.5 4.5 4.5L19 7.5",
  again: "M4 12a8 8 0 1 1 2.5 5.8M4 19v-5h5",
  fresh: "M12 5v14M5 12h14",
  tool: "M14.5 6.5a4 4 0 0 0-5.3 5.1L4 16.8 7.2 20l5.2-5.2a4 4 0 0 0 5.1-5.3L15 12l-3-3z",
  clip: "M8 12.5 13.5 7a2.8 2.8 0 0 1 4 4l-7.5 7.5a4.6 4.6 0 0 1-6.5-6.5L11 4.5",
  cross: "M6 6l12 12M18 6 6 18",
  lock: "M6 11h12v9H6zM8.5 11V8a3.5 3.5 0 0 1 7 0v3",
  up: "M7 10v10H4V10zm0 0 4-7a2 2 0 0 1 2 2v4h6l-1.5 11H7",
  down: "M7 14V4H4v10zm0 0 4 7a2 2 0 0 0 2-2v-4h6L17.5 4H7",
  edit: "M4 20l1-4L16 5l3 3L8 19zM14 7l3 3",
  before: "M14 6l-6 6 6 6",
  next: "M10 6l6 6-6 6",
  settings: "M4 7h9m5 0h2M4 17h2m5 0h9M15.5 4.5v5M8.5 14.5v5",
  federation:
    "M12 4.5a2 2 0 1 0 0 4 2 2 0 0 0 0-4M5.5 15.5a2 2 0 1 0 0 4 2 2 0 0 0 0-4" +
    "M18.5 15.5a2 2 0 1 0 0 4 2 2 0 0 0 0-4M11 8.5l-4.5 7m6.5-7 4.5 7m-10 2h9",
  plugin: "M9 4v4M15 4v4M6 8h12v4a6 6 0 0 1-12 0zM12 18v3",
  model: "M12 3l8 4.5v9L12 21l-8-4.5v-9zM4 7.5l8 4.5 8-4.5M12 12v9",
  help: "M9 9a3 3 0 1 1 4.5 2.6c-1 .6-1.5 1.2-1.5 2.4m0 3v.5",
};

export const Icon = ({ name }) =>
  html`<svg class="icon" viewBox="0 0 24 24" aria-hidden="true"><path d=${ICONS[name]} /></svg>`;

/** The mark: five voices, no one of them the loudest for long. */
export const Mark = ({ singing }) => html`
  <span class=${singing ? "mark singing" : "mark"} aria-hidden="true">
    <i /><i /><i /><i /><i />
  </span>
`;

/** An adapter's id is a hash; its first letters tell it from its like. */
export const adapterName = ({ id, description }) =>
  description ? `${description} · ${id.slice(0, 6)}` : id.slice(0, 12);

/** A list that opens below its sign. */
export const Menu = ({ kind, icon, title, badge, open, onToggle, children }) => html`
  <details class="tools ${kind}" open=${open} onToggle=${onToggle}>
    <summary title=${title} aria-label=${badge ? `${title}: ${badge}` : title}>
      <${Icon} name=${icon} />${badge}
    </summary>
    ${children}
  </details>
`;

export const Round = ({ icon, title, ...rest }) => html`
  <button class="round" title=${title} aria-label=${title} ...${rest}>
    <${Icon} name=${icon} />
  </button>
`;

/** A window over the page, until it is closed; the browser keeps the focus in it. */
export function Panel({ title, onClose, children }) {
  const place = useRef(null);
  // before the next frame: what is typed meanwhile would go to what lies below
  useLayoutEffect(() => {
    place.current.showModal();
  }, []);
  const beside = (event) => event.target === place.current && place.current.close();
  return html`<dialog class="panel" ref=${place} onClose=${onClose} onClick=${beside}
    aria-labelledby="panel-title">
    <div class="panel-body">
      <div class="panel-head">
        <h2 id="panel-title">${title}</h2>
        <${Round} icon="cross" title=${t("close")} onClick=${() => place.current.close()} />
      </div>
      ${children}
    </div>
  </dialog>`;
}

export function Header({
  status, adapters, tools, consent, documents, history, onAdapter, onLook, onFresh, onPanel, empty,
}) {
  const pick = (event) => onAdapter(event.target.value || null);
  const panel = (name) => html`<${Round} icon=${name} title=${t(`${name}.title`)}
    aria-haspopup="dialog" onClick=${() => onPanel(name)} />`;
  return html`<header class="top">
    <h1 class="brand"><${Mark} /><span>quietchoir</span></h1>
    <div class="controls">
      ${status &&
      html`<label class="picker" title=${t("adapter.title")}>
        <span class="picker-label">${t("adapter")}</span>
        <select aria-label=${t("adapter.label")} value=${adapters.active ?? ""} onFocus=${onLook}
          onChange=${pick}>
          <option value="" selected=${!adapters.active}>${t("adapter.none")}</option>
          ${adapters.adapters.map(
            (one) => html`<option value=${one.id} selected=${one.id === adapters.active}>
              ${adapterName(one)}
            </option>`,
          )}
        </select>
      </label>`}
      ${consent} ${history} ${panel("settings")} ${documents}
      <${Tools} tools=${tools} />
      ${panel("plugin")} ${panel("federation")} ${panel("model")} ${panel("help")}
      <${ThemeButton} />
      <${Round} icon="fresh" title=${t("fresh")} onClick=${onFresh} disabled=${empty} />
    </div>
  </header>`;
}

/** What a tool may touch, and whether it is asked first. */
export const touches = (tool) =>
  [known(`effect.${tool.effect}`, tool.effect), known(`rule.${tool.rule}`, tool.rule)].join("; ");

function Tools({ tools }) {
  if (!tools.length) return null;
  return html`<${Menu} kind="" icon="tool" title=${t("tools.title")} badge=${tools.length}>
    <ul>
      ${tools.map(
        (tool) => html`<li><b>${tool.name}</b><span>${tool.description}</span>
          <span>${[touches(tool), tool.plugin].filter(Boolean).join("; ")}</span></li>`,
      )}
    </ul>
  <//>`;
}

function ThemeButton() {
  const isDark = () => {
    const chosen = document.documentElement.dataset.theme;
    return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  };
  const [dark, setDark] = useState(isDark());
  const turn = () => {
    const theme = dark ? "light" : "dark";
    document.documentElement.dataset.theme = theme;
    localStorage.setItem("theme", theme);
    setDark(!dark);
  };
  return html`<${Round} icon=${dark ? "sun" : "moon"} onClick=${turn}
    title=${t(dark ? "theme.light" : "theme.dark")} />`;
}

export function Welcome({ model, suggestions, onAsk }) {
  return html`<section class="welcome">
    <${Mark} singing=${true} />
    <h2>${t("welcome")}</h2>
    <p>${t("welcome.local")}</p>
    <div class="suggestions">
      ${suggestions.map((text) => html`<button onClick=${() => onAsk(text)}>${text}</button>`)}
    </div>
    ${model && html`<p class="faint">${model}</p>`}
  </section>`;
}

export function Message({
  message, last, tools, frozen, onAgain, onEdit, onApprove, onRespond, onRemember, citations,
  verdict, variants, by,
}) {
  if (message.role === "user") {
    return html`<${Asked} text=${message.text} variants=${variants} frozen=${frozen}
      onEdit=${onEdit} onRemember=${onRemember} />`;
  }
  const busy = message.state === "busy";
  return html`<article class="message assistant" aria-busy=${busy}>
    <${Mark} singing=${busy} />
    <div class="body">
      ${citations}
      ${message.context && html`<${LeftOut} context=${message.context} />`}
      ${message.thought &&
      html`<${Thought} text=${message.thought} thinks=${busy && !message.text} />`}
      ${message.calls.map(
        (call) =>
          html`<${ToolCard} key=${call.id} call=${call} waiting=${busy} onApprove=${onApprove}
            onRespond=${onRespond} tool=${tools.find(({ name }) => name === call.name)} />`,
      )}
      ${message.text
        ? html`<${Prose} text=${message.text} busy=${busy} />`
        : busy &&
          !message.calls.length &&
          !message.thought &&
          html`<p class="thinking">${t("thinking")}<span>…</span></p>`}
      ${message.error && html`<p class="error" role="alert">${message.error}</p>`}
      ${!busy && html`<${Footer} message=${message} last=${last} onAgain=${onAgain}
        verdict=${verdict} by=${by} />`}
    </div>
  </article>`;
}

/** What the user said; said otherwise, it begins a branch. */
function Asked({ text, variants, frozen, onEdit, onRemember }) {
  const [draft, setDraft] = useState(null);
  const field = useRef(null);
  useEffect(() => field.current?.focus(), [draft === null]);
  const save = () => {
    if (!draft.trim() || frozen) return;
    setDraft(null);
    onEdit(draft.trim());
  };
  const key = (event) => {
    if (event.isComposing || event.shiftKey || !["Enter", "Escape"].includes(event.key)) return;
    event.preventDefault();
    if (event.key === "Enter") save();
    else setDraft(null);
  };
  if (draft !== null) {
    return html`<article class="message user">
      <div class="bubble draft">
        <textarea ref=${field} rows="3" value=${draft} aria-label=${t("edit.label")}
          onInput=${(event) => setDraft(event.target.value)} onKeyDown=${key} />
        <div class="choices">
          <button class="yes" disabled=${frozen || !draft.trim()} onClick=${save}>
            ${t("edit.send")}
          </button>
          <button onClick=${() => setDraft(null)}>${t("cancel")}</button>
        </div>
      </div>
    </article>`;
  }
  const small = (icon, title, kind, onClick) => html`<button class="small ${kind}"
    title=${title} aria-label=${title} disabled=${kind === "edit" && frozen} onClick=${onClick}>
    <${Icon} name=${icon} />
  </button>`;
  return html`<article class="message user">
    <div class="about-asked">
      ${variants}
      ${small("edit", t("edit"), "edit", () => setDraft(text))}
      ${small("memory", t("memory.remember"), "remember", onRemember)}
    </div>
    <div class="bubble">${text}</div>
  </article>`;
}

function Prose({ text, busy }) {
  const place = useRef(null);
  // once a text: answers above the running one stay as they are
  const shown = useMemo(() => ({ __html: toHtml(text) }), [text, language]);
  useLayoutEffect(() => {
    dress(place.current);
    if (!busy) finish(place.current);
  }, [shown, busy]);
  return html`<div class="prose" ref=${place} onClick=${copyCode}
    dangerouslySetInnerHTML=${shown} />`;
}

/** "1-3, 7" for [1, 2, 3, 7]. */
function ranges(numbers) {
  const found = [];
  for (const number of numbers) {
    const last = found.at(-1);
    if (last && number === last[1] + 1) last[1] = number;
    else found.push([number, number]);
  }
  return found.map(([first, last]) => (first < last ? `${first}-${last}` : first)).join(", ");
}

/** What of a long conversation the model was not shown. */
function LeftOut({ context }) {
  const { left_out_turns: gone, excerpted_turns: excerpted, condensed_turns: condensed } = context;
  const parts = [
    t("context.tokens", { whole: context.tokens, shown: context.shown_tokens }),
    gone.length > 0 && t("context.gone", { turns: ranges(gone) }),
    excerpted.length > 0 && t("context.excerpted", { turns: ranges(excerpted) }),
    condensed.length > 0 && t("context.condensed", { turns: ranges(condensed) }),
    t("context.rest"),
  ];
  return html`<details class="left-out">
    <summary>${t("context.title")}</summary>
    <p>${parts.filter(Boolean).join(" ")}</p>
  </details>`;
}

/** What a reasoning model thought before it answered, folded away; open, it is read as it comes. */
const Thought = ({ text, thinks }) => html`<details class="thought">
  <summary class=${thinks ? "thinking" : ""}>
    ${thinks ? html`${t("thinking")}<span>…</span>` : t("thought.title")}
  </summary>
  <p>${text.trim()}</p>
</details>`;

function Footer({ message, last, onAgain, verdict, by }) {
  const [copied, setCopied] = useState(false);
  const copy = async () => {
    await navigator.clipboard.writeText(message.text);
    setCopied(true);
    setTimeout(() => setCopied(false), 1500);
  };
  const { usage, seconds } = message;
  const spent = (value) => value.toLocaleString(language, { maximumFractionDigits: 1 });
  return html`<footer>
    <button class="small" onClick=${copy} title=${t("copy")} aria-label=${t("copy.label")}>
      <${Icon} name=${copied ? "check" : "copy"} />
    </button>
    ${last &&
    html`<button class="small" onClick=${onAgain} title=${t("again")} aria-label=${t("again")}>
      <${Icon} name="again" />
    </button>`}
    ${message.state === "done" && verdict}
    ${message.state === "stopped" && html`<span>${t("stopped")}</span>`}
    ${known(`cut.${message.cut}`, "") && html`<span>${t(`cut.${message.cut}`)}</span>`}
    ${by && html`<span>${by}</span>`}
    ${message.listed &&
    html`<span title=${message.listed.names.join(", ")}>
      ${t("tools.listed", { some: message.listed.names.length, all: message.listed.offered })}
    </span>`}
    ${usage &&
    html`<span>
      ${t("usage", { count: usage.completion_tokens, seconds: spent(seconds) })}
    </span>`}
  </footer>`;
}

function ToolCard({ call, tool, waiting, onApprove, onRespond }) {
  const form = waiting && !call.result && call.elicitation;
  const asked = call.approval && !call.answered && waiting;
  const came = call.result ? (call.result.ok ? "ok" : "failed") : "unknown";
  const settled = call.kept ? "kept" : came;
  const state = asked || form ? "asked" : !call.result && waiting ? "waiting" : settled;
  const sign =
    ["ok", "failed", "unknown"].includes(state) &&
    html`<${Icon} name=${state === "ok" ? "check" : "cross"} />`;
  const told = (value) => (typeof value === "string" ? value : JSON.stringify(value));
  return html`<div class="card ${state}">
    <div class="card-head">
      <${Icon} name="tool" /><b>${call.name}</b>
      <span class="state">${sign}${t(`call.${state}`)}</span>
    </div>
    <dl>
      ${Object.entries(call.arguments).map(
        ([name, value]) => html`<div><dt>${name}</dt><dd>${told(value)}</dd></div>`,
      )}
    </dl>
    ${tool && html`<p class="faint">${touches(tool)}</p>`}
    ${asked && html`<${Approval} approval=${call.approval} onApprove=${onApprove} />`}
    ${form && html`<${Elicitation} key=${form.id} form=${form} onRespond=${onRespond} />`}
    ${state === "failed" && html`<p class="faint">${call.result.content}</p>`}
  </div>`;
}

/** How the node ends a question before an action, and the text for it. */
const ENDS = [
  [", with nothing named, so it may mean everything. Shall I?", "approval.everything"],
  [". Shall I?", "approval.shall"],
];

/** The node's question, with its end in the reader's language; what is asked stays as it said. */
function asked(question) {
  const [end, key] = ENDS.find(([one]) => question.endsWith(one)) ?? [];
  return end ? question.slice(0, -end.length) + t(key) : question;
}

/** The question before an action; nothing is done until somebody says yes. */
function Approval({ approval, onApprove }) {
  const [said, setSaid] = useState(false);
  const answer = (approved, remember) => {
    setSaid(true);
    onApprove(approval.id, approved, remember);
  };
  return html`<div class="approval" role="group" aria-label=${t("approval.label")}>
    <p>${asked(approval.question)}</p>
    ${approval.effect === "outside" && html`<p class="faint">${t("approval.outside")}</p>`}
    <div class="choices">
      <button class="yes" disabled=${said} onClick=${() => answer(true, false)}>${t("yes")}</button>
      <button disabled=${said} onClick=${() => answer(false, false)}>${t("no")}</button>
      ${approval.effect !== "outside" && html`
        <button disabled=${said} onClick=${() => answer(true, true)}>
          ${t("approval.always")}
        </button>`}
    </div>
  </div>`;
}

/** One value of a form, by its schema. */
function FormField({ name, schema, required }) {
  const { type, title, enum: options, minimum, maximum, minLength, maxLength } = schema;
  const whole = type === "integer" ? 1 : "any";
  const range = { type: "number", step: whole, min: minimum, max: maximum };
  const words = { type: "text", minlength: minLength, maxlength: maxLength };
  const choices = type === "boolean" ? ["true", "false"] : options;
  const told = (one) => (type === "boolean" ? t(one === "true" ? "yes" : "no") : one);
  const field = `field.${name}`; // a name like "elements" would hide what the form itself has
  return html`<label><span>${title}${required && html`<b aria-hidden="true"> *</b>`}</span>
    ${choices
      ? html`<select name=${field} required=${required}>
          <option value="" selected>${t("form.nothing")}</option>
          ${choices.map((one) => html`<option value=${one}>${told(one)}</option>`)}
        </select>`
      : html`<input name=${field} required=${required} autocomplete="off"
          ...${type === "string" ? words : range} />`}
  </label>`;
}

/** What was filled in; an empty field is left out. */
function filledIn({ properties }, elements) {
  const read = { string: (text) => text, boolean: (text) => text === "true" };
  const rows = Object.entries(properties).map(([name, { type }], index) => {
    const text = elements[index].value;
    return text !== "" && [name, (read[type] ?? Number)(text)];
  });
  return Object.fromEntries(rows.filter(Boolean));
}

/** A plugin's form, in its own words; only what is sent here reaches it. */
function Elicitation({ form, onRespond }) {
  const [sent, setSent] = useState(false);
  const [told, setTold] = useState("");
  const respond = async (result) => {
    setSent(true);
    try {
      await onRespond(form.id, result);
    } catch (error) {
      setTold(error.message);
      setSent(false);
    }
  };
  const submit = (event) => {
    event.preventDefault();
    const content = filledIn(form.requested_schema, event.target.elements);
    respond({ action: "accept", content });
  };
  const { properties, required } = form.requested_schema;
  return html`<form class="approval" aria-label=${t("form.label")} onSubmit=${submit}>
    <p>${rich("form.asks", { plugin: html`<b>${form.plugin}</b>` })}</p>
    <blockquote>${form.message}</blockquote>
    <div class="fields">
      ${Object.entries(properties).map(
        ([name, schema]) => html`<${FormField} name=${name} schema=${schema}
          required=${required.includes(name)} />`,
      )}
    </div>
    <p class="faint">${t("form.whose")}</p>
    ${told && html`<p class="error" role="alert">${told}</p>`}
    <div class="choices">
      <button class="yes" disabled=${sent}>${t("form.send")}</button>
      <button type="button" disabled=${sent} onClick=${() => respond({ action: "decline" })}>
        ${t("form.decline")}
      </button>
      <button type="button" disabled=${sent} onClick=${() => respond({ action: "cancel" })}>
        ${t("form.cancel")}
      </button>
    </div>
  </form>`;
}

export function Composer({ busy, files, onAsk, onStop }) {
  const [text, setText] = useState("");
  const field = useRef(null);
  useEffect(() => {
    field.current.style.height = "auto";
    field.current.style.height = `${field.current.scrollHeight}px`;
  }, [text]);
  useEffect(() => field.current.focus(), [busy]);
  const send = () => {
    if (busy || !text.trim()) return;
    onAsk(text.trim());
    setText("");
  };
  const key = (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    send();
  };
  return html`<div class="composer">
    <div class="box">
      ${files}
      <textarea id="composer" ref=${field} rows="1" placeholder=${t("composer")}
        aria-label=${t("composer.label")} value=${text}
        onInput=${(event) => setText(event.target.value)} onKeyDown=${key} />
      ${busy
        ? html`<button class="send stop" onClick=${onStop} title=${t("stop")}
            aria-label=${t("stop")}>
            <${Icon} name="stop" />
          </button>`
        : html`<button class="send" onClick=${send} disabled=${!text.trim()} title=${t("send")}
            aria-label=${t("send")}>
            <${Icon} name="send" />
          </button>`}
    </div>
    <p class="faint"><${Icon} name="lock" />${t("composer.local")}</p>
  </div>`;
}

export function TokenForm({ wrong, onToken }) {
  const submit = (event) => {
    event.preventDefault();
    onToken(event.target.elements.token.value);
  };
  const command = html`<code>quietchoir serve</code>`;
  return html`<form class="token" onSubmit=${submit}>
    <${Mark} />
    <h1>${t("token.title")}</h1>
    <p>${rich("token.how", { command })}</p>
    <div class="box">
      <input name="token" type="password" autocomplete="off" placeholder=${t("token")}
        aria-label=${t("token")} required />
      <button class="send" title=${t("open")} aria-label=${t("open")}>
        <${Icon} name="send" />
      </button>
    </div>
    ${wrong && html`<p class="error" role="alert">${t("token.wrong")}</p>`}
  </form>`;
}
