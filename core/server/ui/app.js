// The conversation: what was said, what is being answered, and who answers.

import {
  html, render, useEffect, useLayoutEffect, useRef, useState,
} from "./vendor/htm-preact.js";
import { ask, get, keepToken, post, setToken } from "./api.js";
import { Citations, Collections, Memory, propose } from "./documents.js";
import { Consent, Verdict } from "./feedback.js";
import {
  asShown, currentConversation, goOnWith, History, keepUnanswered, newConversation, read,
} from "./history.js";
import { adapterName, Composer, Header, Message, TokenForm, Welcome } from "./parts.js";

const HOUSE = [
  "turn on the kitchen light", "is the bedroom window open?", "add milk to the shopping list",
];
const PLAIN = [
  "Why is the sky blue?", "Write a short poem about autumn", "Explain a haiku in one sentence",
];

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
    usage: chunk.usage ?? answer.usage,
    context: chunk.context ?? answer.context,
  };
  if (!choice) return next;
  const { delta } = choice;
  if (delta.content) next.text += delta.content;
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
  for (const result of delta.tool_results ?? []) {
    put(({ id }) => id === result.tool_call_id, { result });
  }
  if (delta.citations) next.citations = delta.citations;
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
  const [kept, setKept] = useState({ destinations: {}, consent: "never" });
  const keeps = Object.keys(kept.destinations).length > 0; // the node keeps what is said
  const [collections, setCollections] = useState([]);
  const [proposed, setProposed] = useState(0);
  const running = useRef(null);
  const log = useRef(null);
  const follows = useRef(true); // the reader is at the end, and stays there
  const top = useRef(0); // where the conversation was scrolled to
  const busy = messages?.at(-1)?.state === "busy";

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
      const own = conversations.find(({ id }) => id === conversation);
      setKept({ destinations, consent: own?.consent ?? "never" });
      const said = own ? (await read(conversation)).messages : [];
      setMessages((now) => now ?? asShown(said));
    } catch (error) {
      if (error.status === 401) return;
      setNotice(error.message);
      if (messages) return;
      setConversation(newConversation()); // what was not read must not be written over
      setMessages([]);
    }
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

  const answer = async (past) => {
    const control = new AbortController();
    running.current = control;
    const started = performance.now();
    let current = { role: "assistant", text: "", calls: [], state: "busy" };
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
      for await (const chunk of ask(past.map(toApi), conversation, collections, control.signal)) {
        current = grow(current, chunk);
        soon();
      }
      if (running.current === control) keepUnanswered("");
      finish("done");
    } catch (error) {
      if (error.name === "AbortError") return finish("stopped");
      if (error.status === 401) refuse(error);
      finish("failed", error.message);
    }
  };

  const send = (text) => {
    setNotice("");
    answer([...messages, { role: "user", text }]);
  };
  const again = () => answer(messages.slice(0, -1));
  const stop = () => running.current?.abort();
  const fresh = () => {
    stop();
    running.current = null;
    setMessages([]);
    setConversation(newConversation());
    setKept({ ...kept, consent: "never" });
  };
  const goOn = ({ id, consent, messages: said }) => {
    stop();
    running.current = null;
    follows.current = true;
    setConversation(goOnWith(id));
    setMessages(asShown(said));
    setKept({ ...kept, consent });
  };
  const consentTo = (consent) =>
    post(`/api/conversations/${conversation}`, { consent })
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
      return kept.consent === "never" ? "kept, trains nothing" : "kept to learn from";
    } catch (error) {
      refuse(error);
      return "";
    }
  };
  // answers are counted by what was asked: each may hold calls, which are turns of their own there
  const verdictOn = (index) => {
    if (!keeps) return null;
    const turn = messages.slice(0, index).filter(({ role }) => role === "user").length;
    return html`<${Verdict} key=${conversation + turn} onVerdict=${judge(turn)} />`;
  };
  const remember = (text, turn) =>
    propose(text, conversation, turn)
      .then(() => setProposed(proposed + 1))
      .catch(refuse);
  const cites = ({ citations }) =>
    citations?.length && html`<${Citations} citations=${citations} />`;
  const approve = (id, approved, remember) =>
    post(`/api/approvals/${id}`, { approved, remember }).catch(refuse);
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

  if (!token) {
    return html`<main class="gate"><${TokenForm} wrong=${wrong} onToken=${open} /></main>`;
  }
  const active = adapters.adapters.find(({ id }) => id === adapters.active);
  const taught = active && `, taught by ${adapterName(active)}`;
  const name = status && status.model + (taught || "");
  const suggestions = tools.length && adapters.active ? HOUSE : PLAIN;
  return html`
    <${Header} status=${status} adapters=${adapters} tools=${tools} empty=${!messages?.length}
      onAdapter=${choose} onLook=${look} onFresh=${fresh}
      history=${keeps &&
      html`<${History} onOpen=${goOn} onDeleted=${(id) => id === conversation && fresh()} />`}
      documents=${status?.documents &&
      html`<${Collections} chosen=${collections} onChoose=${setCollections} />
        <${Memory} proposed=${proposed} />`}
      consent=${messages?.length > 1 &&
      html`<${Consent} destinations=${kept.destinations} consent=${kept.consent}
        onConsent=${consentTo} />`} />
    <main class="room">
      <div class="talk" role="log" aria-label="Conversation" tabindex="0" ref=${log}
        onScroll=${scrolled}>
        ${messages?.length === 0 &&
        html`<${Welcome} model=${name} suggestions=${suggestions} onAsk=${send} />`}
        ${messages?.map(
          (message, index) =>
            html`<${Message} key=${index} message=${message} last=${index === messages.length - 1}
              onAgain=${again} onApprove=${approve} citations=${cites(message)}
              onRemember=${() => remember(message.text, index + 1)} verdict=${verdictOn(index)} />`,
        )}
        <div class="end" />
      </div>
      ${notice && html`<p class="notice" role="alert">${notice}</p>`}
      ${messages && html`<${Composer} busy=${busy} onAsk=${send} onStop=${stop} />`}
    </main>
  `;
}

render(html`<${App} />`, document.getElementById("app"));
