// The conversation: what was said, what is being answered, and who answers.

import {
  html, render, useEffect, useLayoutEffect, useRef, useState,
} from "./vendor/htm-preact.js";
import { ask, get, keepToken, post, setToken } from "./api.js";
import { Citations, Collections, Files, Memory, propose } from "./documents.js";
import { Federations } from "./federation.js";
import { Consent, Verdict } from "./feedback.js";
import {
  asShown, branch, change, currentConversation, currentSettings, goOnWith, History, keepSettings,
  keepUnanswered, newConversation, read, settingsOf, Variants,
} from "./history.js";
import { Models } from "./models.js";
import { adapterName, Composer, Header, Message, TokenForm, Welcome } from "./parts.js";
import { Plugins } from "./plugins.js";
import { Help, Settings, SHORTCUTS } from "./settings.js";
import { choose as chooseLanguage, speak, t } from "./texts.js";

const NOTHING_KEPT = { destinations: {}, consent: "never", root: "", variants: {}, there: false };
const suggestions = (kind) => [1, 2, 3].map((number) => t(`suggestion.${kind}.${number}`));

/** As the API wants the past: an answer that called tools goes back with what they brought. */
function toApi(message) {
  const plain = { role: message.role, content: message.text };
  if (!message.calls?.length) return plain;
  const calls = message.calls.map(({ id, name, arguments: given }) => ({
    id,
    type: "function",
    function: { name, arguments: JSON.stringify(given) },
  }));
  const results = message.calls
    .filter(({ result }) => result)
    .map(({ id, result }) => ({ tool_call_id: id, content: result.content, ok: result.ok }));
  return { ...plain, tool_calls: calls, tool_results: results };
}

/** One chunk of the stream, added to the answer so far. */
function grow(answer, chunk) {
  const [choice] = chunk.choices;
  const next = {
    ...answer,
    model: chunk.model,
    usage: chunk.usage ?? answer.usage,
    context: chunk.context ?? answer.context,
  };
  if (!choice) return next;
  const { delta } = choice;
  if (delta.content) next.text += delta.content;
  if (delta.step && next.thought) next.thought += "\n\n"; // it thinks anew
  if (delta.reasoning_content) next.thought += delta.reasoning_content;
  for (const call of delta.tool_calls ?? []) {
    const given = JSON.parse(call.function.arguments);
    next.calls = [...next.calls, { id: call.id, name: call.function.name, arguments: given }];
  }
  const put = (found, more) => {
    next.calls = next.calls.map((call) => (found(call) ? { ...call, ...more } : call));
  };
  for (const approval of delta.approvals ?? []) {
    put(({ id }) => id === approval.tool_call_id, { approval });
  }
  for (const { id, approved, by } of delta.approved ?? []) {
    put((call) => call.approval?.id === id, { answered: { approved, by } });
  }
  for (const elicitation of delta.elicitations ?? []) {
    put(({ id }) => id === elicitation.tool_call_id, { elicitation });
  }
  for (const { id } of delta.elicited ?? []) {
    put((call) => call.elicitation?.id === id, { elicitation: null });
  }
  for (const result of delta.tool_results ?? []) {
    put(({ id }) => id === result.tool_call_id, { result });
  }
  if (delta.citations) next.citations = delta.citations;
  if (delta.sources) next.sources = delta.sources;
  if (delta.tools_listed) next.listed = delta.tools_listed;
  next.cut = choice.stop_reason ?? choice.finish_reason;
  return next;
}

function App() {
  const [token, setHasToken] = useState(keepToken());
  const [wrong, setWrong] = useState(false);
  const [status, setStatus] = useState(null);
  const [adapters, setAdapters] = useState({ active: null, adapters: [] });
  const [tools, setTools] = useState([]);
  const [messages, setMessages] = useState(null); // null until it is known what was said before
  const [notice, setNotice] = useState("");
  const [conversation, setConversation] = useState(currentConversation);
  const [settings, setSettings] = useState(currentSettings);
  const [kept, setKept] = useState(NOTHING_KEPT);
  const keeps = Object.keys(kept.destinations).length > 0; // the node keeps what is said
  const [panel, setPanel] = useState(""); // the window that is open over the page
  const [, setLanguage] = useState("");
  const [proposed, setProposed] = useState(0);
  const running = useRef(null);
  const log = useRef(null);
  const follows = useRef(true); // the reader is at the end, and stays there
  const top = useRef(0); // where the conversation was scrolled to
  const busy = messages?.at(-1)?.state === "busy";

  /** Of a message of the user's, which it is, counted from one. */
  const turnOf = (index) =>
    messages.slice(0, index + 1).filter(({ role }) => role === "user").length;

  const refuse = (error) => {
    if (error.status !== 401) return setNotice(error.message);
    setHasToken(false);
    setWrong(true);
  };

  useEffect(() => {
    if (!token) return;
    Promise.all([get("/api/status"), get("/api/adapters"), get("/api/tools")])
      .then(([state, known, offered]) => {
        setStatus(state);
        setAdapters(known);
        setTools(offered.tools);
      })
      .catch(refuse);
    lookKept();
  }, [token]);

  const lookKept = async () => {
    try {
      const { destinations, conversations } = await get("/api/conversations");
      const there = conversations.some(({ id }) => id === conversation);
      setKept({ ...NOTHING_KEPT, destinations });
      if (there) return showKept(await read(conversation), destinations);
      setMessages((now) => now ?? asShown([]));
    } catch (error) {
      if (error.status === 401) return;
      setNotice(error.message);
      if (messages) return;
      setConversation(newConversation()); // what was not read must not be written over
      setMessages([]);
    }
  };
  /** The node's conversation, as it stands there. */
  const showKept = (whole, destinations = kept.destinations) => {
    const { root, variants, consent } = whole;
    setKept({ destinations, consent, root, variants, there: true });
    setMessages(asShown(whole.messages));
    setSettings(settingsOf(whole));
  };

  // a federation may have brought one
  const look = () => get("/api/adapters").then(setAdapters).catch(refuse);

  useLayoutEffect(() => {
    if (log.current && follows.current) log.current.scrollTop = log.current.scrollHeight;
  }, [messages]);
  // Scrolling up leaves the end; only there does the page follow again. What grew meanwhile has
  // moved the end, not the reader.
  const scrolled = () => {
    const { scrollTop, scrollHeight, clientHeight } = log.current;
    const atEnd = scrollHeight - scrollTop - clientHeight < 32;
    follows.current = atEnd || (follows.current && scrollTop >= top.current);
    top.current = scrollTop;
  };

  const answer = async (past, name = conversation) => {
    const control = new AbortController();
    running.current = control;
    const started = performance.now();
    let current = { role: "assistant", text: "", thought: "", calls: [], state: "busy" };
    const show = () => setMessages([...past, current]);
    let frame = 0; // chunks come faster than a screen can show them
    const soon = () => {
      frame ||= requestAnimationFrame(() => {
        frame = 0;
        if (running.current === control) show();
      });
    };
    const finish = (state, error = "") => {
      current = { ...current, state, error, seconds: (performance.now() - started) / 1000 };
      cancelAnimationFrame(frame);
      if (running.current === control) show();
    };
    follows.current = true;
    if (keeps) keepUnanswered(past.at(-1).text);
    show();
    try {
      for await (const chunk of ask(past.map(toApi), name, settings, control.signal)) {
        current = grow(current, chunk);
        soon();
      }
      if (running.current === control) keepUnanswered("");
      finish("done");
      if (keeps && running.current === control) await settle(name);
    } catch (error) {
      if (error.name === "AbortError") return finish("stopped");
      if (error.status === 401) refuse(error);
      finish("failed", error.message);
    }
  };

  /** The node keeps the conversation now: its settings go there, and how its branches part. */
  const settle = async (name) => {
    try {
      if (Object.keys(settings).length) await change(name, { settings });
      const { root, variants, consent } = await read(name);
      setKept((now) => ({ ...now, root, variants, consent, there: true }));
    } catch (error) {
      refuse(error);
    }
  };

  const send = (text) => {
    setNotice("");
    answer([...messages, { role: "user", text }]);
  };
  /** Ask in the place of a message, as a branch where an answer from there on is kept. */
  const askInstead = async (index, text) => {
    const past = [...messages.slice(0, index), { role: "user", text }];
    setNotice("");
    const answered = messages.slice(index).some(({ state }) => state === "done");
    if (!kept.there || !answered) return answer(past);
    try {
      const made = await branch(conversation, turnOf(index));
      setConversation(goOnWith(made.id, settings));
      setKept({ ...kept, root: made.root, variants: made.variants });
      await answer(past, made.id);
    } catch (error) {
      refuse(error);
    }
  };
  const again = () => askInstead(messages.length - 2, messages.at(-2).text);
  const stop = () => running.current?.abort();
  const fresh = () => {
    stop();
    running.current = null;
    setMessages([]);
    setConversation(newConversation());
    setSettings({});
    setKept({ ...NOTHING_KEPT, destinations: kept.destinations });
  };
  const goOn = (whole) => {
    stop();
    running.current = null;
    follows.current = true;
    setNotice("");
    setConversation(goOnWith(whole.id, settingsOf(whole)));
    showKept(whole);
  };
  const goTo = (id) => read(id).then(goOn).catch(refuse);
  const set = (wanted) => {
    setSettings(wanted);
    keepSettings(wanted);
    if (kept.there) change(conversation, { settings: wanted }).catch(refuse);
  };
  const consentTo = (consent) =>
    change(conversation, { consent })
      .then((info) => setKept({ ...kept, consent: info.consent }))
      .catch((error) => {
        refuse(error);
        setKept({ ...kept });
      });
  const judge = (turn) => async (verdict, answer) => {
    try {
      const given = { conversation, turn, verdict, ...(answer && { answer }) };
      const { example } = await post("/api/feedback", given);
      if (!example) return "";
      return kept.consent === "never" ? "verdict.kept" : "verdict.trains";
    } catch (error) {
      refuse(error);
      return "";
    }
  };
  // answers are counted by what was asked: each may hold calls, which are turns of their own there
  const verdictOn = (index) => {
    if (!keeps) return null;
    const turn = turnOf(index - 1);
    return html`<${Verdict} key=${conversation + turn} onVerdict=${judge(turn)} />`;
  };
  const variantsAt = (index) => {
    const ids = messages[index].role === "user" && kept.variants[turnOf(index)];
    return ids && html`<${Variants} ids=${ids} current=${conversation} disabled=${busy}
      onOpen=${goTo} />`;
  };
  const remember = (text, turn) =>
    propose(text, conversation, turn)
      .then(() => setProposed(proposed + 1))
      .catch(refuse);
  /** Who answered, where the node chose. */
  const answeredBy = ({ model }) => {
    if (!model || !adapters.active || settings.model) return "";
    const one = adapters.adapters.find(({ id }) => model.endsWith(`:${id}`));
    return one ? t("answered.adapter", { adapter: adapterName(one) }) : t("answered.plain");
  };
  const cites = ({ citations, sources }) =>
    (citations?.length || sources?.length) &&
    html`<${Citations} citations=${citations ?? []} sources=${sources ?? []} />`;
  const approve = (id, approved, remember) =>
    post(`/api/approvals/${id}`, { approved, remember }).catch(refuse);
  // what does not fit is told in the form itself, which stays open
  const respond = (id, result) => post(`/api/elicitations/${id}`, result);
  const choose = (name) => {
    setNotice("");
    post("/api/adapters/activate", { name })
      .then(({ active }) => setAdapters({ ...adapters, active }))
      .catch((error) => {
        refuse(error);
        setAdapters({ ...adapters });
      });
  };
  const open = (given) => {
    setToken(given);
    setWrong(false);
    setHasToken(true);
  };

  const speakIn = (chosen) => chooseLanguage(chosen).then(() => setLanguage(chosen)).catch(refuse);
  const openMenu = (kind) => {
    const menu = document.querySelector(`.${kind}`);
    if (!menu) return;
    menu.open = true;
    (menu.querySelector("input") ?? menu.querySelector("summary")).focus();
  };
  const last = messages?.at(-1);
  const shortcuts = {
    fresh: () => messages?.length && fresh(),
    "history.title": () => openMenu("history"),
    "composer.label": () => document.getElementById("composer")?.focus(),
    "settings.title": () => setPanel("settings"),
    "federation.title": () => setPanel("federation"),
    "model.title": () => setPanel("model"),
    again: () => last?.role === "assistant" && !busy && again(),
    "copy.label": () => last?.text && navigator.clipboard.writeText(last.text),
    "help.title": () => setPanel("help"),
  };
  // with what is drawn, not after it: a key would meet the page as it was before
  useLayoutEffect(() => {
    const pressed = (event) => {
      if (event.key === "Escape" && !event.isComposing) return escape(event);
      if (!event.altKey || !event.shiftKey || event.ctrlKey || event.metaKey || panel) return;
      const found = SHORTCUTS.find(([key]) => event.code === `Key${key}`);
      if (!found || !token) return;
      event.preventDefault();
      shortcuts[found[1]]();
    };
    const escape = (event) => {
      const open = document.activeElement?.closest("details.tools[open]");
      const menus = open ? [open] : document.querySelectorAll("details.tools[open]");
      if (event.defaultPrevented || panel) return;
      for (const menu of menus) {
        menu.open = false;
        if (menu === open) menu.querySelector("summary").focus();
      }
      if (!menus.length && busy) stop();
    };
    // a click beside an open menu closes it
    const clicked = ({ target }) => {
      for (const menu of document.querySelectorAll("details.tools[open]")) {
        if (!menu.contains(target) && target.isConnected) menu.open = false;
      }
    };
    document.addEventListener("keydown", pressed);
    document.addEventListener("click", clicked);
    return () => {
      document.removeEventListener("keydown", pressed);
      document.removeEventListener("click", clicked);
    };
  });

  if (!token) {
    return html`<main class="gate"><${TokenForm} wrong=${wrong} onToken=${open} /></main>`;
  }
  const active = adapters.adapters.find(({ id }) => id === adapters.active);
  const taught = { model: status?.model, adapter: active && adapterName(active) };
  const name = status && (active ? t("model.taught", taught) : status.model);
  // `remember` is the node's own, and of every house
  const inHouse = adapters.active && tools.some(({ plugin }) => plugin);
  const collections = settings.collections ?? [];
  const cite = (one) =>
    collections.includes(one) || set({ ...settings, collections: [...collections, one] });
  const files = status?.documents && html`<${Files} chosen=${collections} onTaken=${cite} />`;
  const panels = {
    settings: html`<${Settings} settings=${settings} adapters=${adapters} onChange=${set}
      onClose=${() => setPanel("")} />`,
    model: html`<${Models} onClose=${() => setPanel("")} />`,
    plugin: html`<${Plugins} onClose=${() => setPanel("")} />`,
    federation: html`<${Federations} onClose=${() => setPanel("")} />`,
    help: html`<${Help} onLanguage=${speakIn} onClose=${() => setPanel("")} />`,
  };
  return html`
    <${Header} status=${status} adapters=${adapters} tools=${tools} empty=${!messages?.length}
      onAdapter=${choose} onLook=${look} onFresh=${fresh} onPanel=${setPanel}
      history=${keeps &&
      html`<${History} current=${conversation} onOpen=${goOn}
        onDeleted=${(root) => root === kept.root && fresh()} />`}
      documents=${status?.documents &&
      html`<${Collections} chosen=${collections}
          onChoose=${(wanted) => set({ ...settings, collections: wanted })} />
        <${Memory} proposed=${proposed} />`}
      consent=${kept.there &&
      html`<${Consent} destinations=${kept.destinations} consent=${kept.consent}
        onConsent=${consentTo} />`} />
    <main class="room">
      <div class="talk" role="log" aria-label=${t("conversation")} tabindex="0" ref=${log}
        onScroll=${scrolled}>
        ${messages?.length === 0 &&
        html`<${Welcome} model=${name} onAsk=${send}
          suggestions=${suggestions(inHouse ? "house" : "plain")} />`}
        ${messages?.map(
          (message, index) =>
            html`<${Message} key=${index} message=${message} last=${index === messages.length - 1}
              tools=${tools} frozen=${busy} onAgain=${again} onApprove=${approve}
              onRespond=${respond} citations=${cites(message)}
              onEdit=${(text) => askInstead(index, text)}
              onRemember=${() => remember(message.text, index + 1)} verdict=${verdictOn(index)}
              variants=${variantsAt(index)} by=${answeredBy(message)} />`,
        )}
        <div class="end" />
      </div>
      ${notice && html`<p class="notice" role="alert">${notice}</p>`}
      ${messages && html`<${Composer} busy=${busy} files=${files} onAsk=${send} onStop=${stop} />`}
    </main>
    ${panels[panel]}
  `;
}

await speak();
render(html`<${App} />`, document.getElementById("app"));
