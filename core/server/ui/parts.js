// What stands on the page, piece by piece. Each part shows what it is given and says what was
// clicked.

import { html, useEffect, useMemo, useRef, useState } from "./vendor/htm-preact.js";
import { toHtml } from "./markdown.js";

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
  cross: "M6 6l12 12M18 6 6 18",
  lock: "M6 11h12v9H6zM8.5 11V8a3.5 3.5 0 0 1 7 0v3",
  up: "M7 10v10H4V10zm0 0 4-7a2 2 0 0 1 2 2v4h6l-1.5 11H7",
  down: "M7 14V4H4v10zm0 0 4 7a2 2 0 0 0 2-2v-4h6L17.5 4H7",
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

export function Header({
  status, adapters, tools, consent, documents, history, onAdapter, onLook, onFresh, empty,
}) {
  const pick = (event) => onAdapter(event.target.value || null);
  return html`<header class="top">
    <h1 class="brand"><${Mark} /><span>quietchoir</span></h1>
    <div class="controls">
      ${status &&
      html`<label class="picker" title="Which adapter answers">
        <span class="picker-label">adapter</span>
        <select aria-label="Adapter" value=${adapters.active ?? ""} onFocus=${onLook}
          onChange=${pick}>
          <option value="" selected=${!adapters.active}>none, the plain model</option>
          ${adapters.adapters.map(
            (one) => html`<option value=${one.id} selected=${one.id === adapters.active}>
              ${adapterName(one)}
            </option>`,
          )}
        </select>
      </label>`}
      ${consent} ${history} ${documents}
      <${Tools} tools=${tools} />
      <${ThemeButton} />
      <button class="round" onClick=${onFresh} disabled=${empty} title="New conversation"
        aria-label="New conversation">
        <${Icon} name="fresh" />
      </button>
    </div>
  </header>`;
}

function Tools({ tools }) {
  if (!tools.length) return null;
  return html`<details class="tools">
    <summary title="What the assistant may call"><${Icon} name="tool" />${tools.length}</summary>
    <ul>
      ${tools.map((tool) => html`<li><b>${tool.name}</b><span>${tool.description}</span></li>`)}
    </ul>
  </details>`;
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
  const name = dark ? "Light theme" : "Dark theme";
  return html`<button class="round" onClick=${turn} title=${name} aria-label=${name}>
    <${Icon} name=${dark ? "sun" : "moon"} />
  </button>`;
}

export function Welcome({ model, suggestions, onAsk }) {
  return html`<section class="welcome">
    <${Mark} singing=${true} />
    <h2>Many voices, none heard alone.</h2>
    <p>An assistant that lives on this machine. What you write here stays here.</p>
    <div class="suggestions">
      ${suggestions.map((text) => html`<button onClick=${() => onAsk(text)}>${text}</button>`)}
    </div>
    ${model && html`<p class="faint">${model}</p>`}
  </section>`;
}

export function Message({
  message, last, onAgain, onApprove, onRemember, citations, verdict,
}) {
  if (message.role === "user") {
    return html`<article class="message user">
      <button class="small remember" onClick=${onRemember} title="Remember this"
        aria-label="Remember this"><${Icon} name="memory" /></button>
      <div class="bubble">${message.text}</div>
    </article>`;
  }
  const busy = message.state === "busy";
  return html`<article class="message assistant" aria-busy=${busy}>
    <${Mark} singing=${busy} />
    <div class="body">
      ${citations}
      ${message.context && html`<${LeftOut} context=${message.context} />`}
      ${message.calls.map(
        (call) =>
          html`<${ToolCard} key=${call.id} call=${call} waiting=${busy} onApprove=${onApprove} />`,
      )}
      ${message.text
        ? html`<${Prose} text=${message.text} />`
        : busy && !message.calls.length && html`<p class="thinking">thinking<span>…</span></p>`}
      ${message.error && html`<p class="error" role="alert">${message.error}</p>`}
      ${!busy && html`<${Footer} message=${message} last=${last} onAgain=${onAgain}
        verdict=${verdict} />`}
    </div>
  </article>`;
}

function Prose({ text }) {
  const place = useRef(null);
  useEffect(() => {
    // scrollable, so reachable by keyboard
    for (const block of place.current.querySelectorAll("pre")) block.tabIndex = 0;
  }, [text]);
  // once a text: answers above the running one stay as they are
  const shown = useMemo(() => ({ __html: toHtml(text) }), [text]);
  return html`<div class="prose" ref=${place} dangerouslySetInnerHTML=${shown} />`;
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
  return html`<details class="left-out">
    <summary>Not all of this conversation fitted</summary>
    <p>
      It takes ${context.tokens} tokens, the model was shown ${context.shown_tokens}.
      ${gone.length > 0 && html` Left out: turn ${ranges(gone)}.`}
      ${excerpted.length > 0 && html` In excerpts: turn ${ranges(excerpted)}.`}
      ${condensed.length > 0 && html` As notes: turn ${ranges(condensed)}.`}
      ${" "}What bears on your last message was kept.
    </p>
  </details>`;
}

const CUT = {
  length: "cut at the length limit",
  repetition: "ended, it only repeated itself",
};
const count = (number, noun) => `${number} ${noun}${number === 1 ? "" : "s"}`;

function Footer({ message, last, onAgain, verdict }) {
  const [copied, setCopied] = useState(false);
  const copy = async () => {
    await navigator.clipboard.writeText(message.text);
    setCopied(true);
    setTimeout(() => setCopied(false), 1500);
  };
  const { usage, seconds } = message;
  return html`<footer>
    <button class="small" onClick=${copy} title="Copy" aria-label="Copy the answer">
      <${Icon} name=${copied ? "check" : "copy"} />
    </button>
    ${last &&
    html`<button class="small" onClick=${onAgain} title="Ask again" aria-label="Ask again">
      <${Icon} name="again" />
    </button>`}
    ${message.state === "done" && verdict}
    ${message.state === "stopped" && html`<span>stopped</span>`}
    ${CUT[message.cut] && html`<span>${CUT[message.cut]}</span>`}
    ${message.listed &&
    html`<span title=${message.listed.names.join(", ")}>
      saw ${message.listed.names.length} of ${message.listed.offered} tools
    </span>`}
    ${usage &&
    html`<span>${count(usage.completion_tokens, "token")} in ${seconds.toFixed(1)} s</span>`}
  </footer>`;
}

function ToolCard({ call, waiting, onApprove }) {
  const asked = call.approval && !call.answered && waiting;
  const came = call.result ? (call.result.ok ? "ok" : "failed") : "unknown";
  const settled = call.kept ? "kept" : came;
  const state = asked ? "asked" : !call.result && waiting ? "waiting" : settled;
  const words = {
    ok: "done", failed: "not done", waiting: "at work", unknown: "no answer", asked: "asks you",
    kept: "called", // how it went is not kept
  };
  const sign =
    ["ok", "failed", "unknown"].includes(state) &&
    html`<${Icon} name=${state === "ok" ? "check" : "cross"} />`;
  const told = (value) => (typeof value === "string" ? value : JSON.stringify(value));
  return html`<div class="card ${state}">
    <div class="card-head">
      <${Icon} name="tool" /><b>${call.name}</b>
      <span class="state">${sign}${words[state]}</span>
    </div>
    <dl>
      ${Object.entries(call.arguments).map(
        ([name, value]) => html`<div><dt>${name}</dt><dd>${told(value)}</dd></div>`,
      )}
    </dl>
    ${asked && html`<${Approval} approval=${call.approval} onApprove=${onApprove} />`}
    ${state === "failed" && html`<p class="faint">${call.result.content}</p>`}
  </div>`;
}

/** The question before an action; nothing is done until somebody says yes. */
function Approval({ approval, onApprove }) {
  const [said, setSaid] = useState(false);
  const answer = (approved, remember) => {
    setSaid(true);
    onApprove(approval.id, approved, remember);
  };
  return html`<div class="approval" role="group" aria-label="Question before an action">
    <p>${approval.question}</p>
    ${approval.effect === "outside" && html`<p class="faint">It reaches beyond this machine.</p>`}
    <div class="choices">
      <button class="yes" disabled=${said} onClick=${() => answer(true, false)}>Yes</button>
      <button disabled=${said} onClick=${() => answer(false, false)}>No</button>
      ${approval.effect !== "outside" && html`
        <button disabled=${said} onClick=${() => answer(true, true)}>
          Yes, in this conversation
        </button>`}
    </div>
  </div>`;
}

export function Composer({ busy, onAsk, onStop }) {
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
      <textarea ref=${field} rows="1" placeholder="Ask, or say what to do" aria-label="Message"
        value=${text} onInput=${(event) => setText(event.target.value)} onKeyDown=${key} />
      ${busy
        ? html`<button class="send stop" onClick=${onStop} title="Stop" aria-label="Stop">
            <${Icon} name="stop" />
          </button>`
        : html`<button class="send" onClick=${send} disabled=${!text.trim()} title="Send"
            aria-label="Send">
            <${Icon} name="send" />
          </button>`}
    </div>
    <p class="faint"><${Icon} name="lock" />Runs on this machine. A small model can be wrong.</p>
  </div>`;
}

export function TokenForm({ wrong, onToken }) {
  const submit = (event) => {
    event.preventDefault();
    onToken(event.target.elements.token.value);
  };
  return html`<form class="token" onSubmit=${submit}>
    <${Mark} />
    <h1>This assistant has one owner.</h1>
    <p>Open the address that <code>quietchoir serve</code> printed, or paste its token.</p>
    <div class="box">
      <input name="token" type="password" autocomplete="off" placeholder="Token"
        aria-label="Token" required />
      <button class="send" title="Open" aria-label="Open"><${Icon} name="send" /></button>
    </div>
    ${wrong && html`<p class="error" role="alert">That token is not this node's.</p>`}
  </form>`;
}
