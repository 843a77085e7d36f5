// Documents and memory: which collections an answer may cite, what it cites, what is remembered.
// Knows the node's addresses for them. Whatever a document says stands here as text, never as HTML.

import { html, useEffect, useState } from "./vendor/htm-preact.js";
import { del, get, post, put } from "./api.js";
import { Icon } from "./parts.js";

/** Collections to choose from; nothing where the node has none. */
export function Collections({ chosen, onChoose }) {
  const [known, setKnown] = useState([]);
  const look = () =>
    get("/api/collections")
      .then(({ collections }) => setKnown(collections))
      .catch(() => setKnown([]));
  useEffect(() => {
    look();
  }, []);
  if (!known.length) return null;
  const flip = (name) =>
    onChoose(chosen.includes(name) ? chosen.filter((one) => one !== name) : [...chosen, name]);
  return html`<details class="tools documents" onToggle=${look}>
    <summary title="Documents that answers may cite">
      <${Icon} name="page" />${chosen.length || ""}
    </summary>
    <ul>
      ${known.map(
        ({ name, documents, passages, problem }) => html`<li><label>
          <input type="checkbox" checked=${chosen.includes(name)} disabled=${!!problem}
            onChange=${() => flip(name)} />
          <b>${name}</b><span>${problem || `${documents} documents, ${passages} passages`}</span>
        </label></li>`,
      )}
    </ul>
  </details>`;
}

/** The passages that an answer was given; each opens. */
export const Citations = ({ citations }) => html`<div class="citations">
  ${citations.map((one) => html`<${Citation} key=${one.number} citation=${one} />`)}
</div>`;

function Citation({ citation }) {
  const [shown, setShown] = useState(null);
  const open = (event) => {
    if (!event.target.open || shown) return;
    get(citation.url)
      .then(({ around, heading }) => setShown({ around, heading }))
      .catch((error) => setShown({ around: [], heading: error.message }));
  };
  return html`<details onToggle=${open}>
    <summary title=${citation.file}>[${citation.number}] ${citation.place}</summary>
    ${shown && html`<p class="faint">${shown.heading}</p>`}
    ${shown?.around.map(
      (one) => html`<p class=${one.id === citation.id ? "passage" : "passage faint"}>
        ${one.text}
      </p>`,
    )}
  </details>`;
}

/** What is remembered: shown before it is kept, edited and forgotten here. */
export function Memory({ proposed }) {
  const [facts, setFacts] = useState([]);
  const look = () =>
    get("/api/memory")
      .then((body) => setFacts(body.facts))
      .catch(() => setFacts([]));
  useEffect(() => {
    look();
  }, [proposed]);
  const act = (work) => work.then(look).catch(look);
  const add = (event) => {
    event.preventDefault();
    const text = event.target.elements.fact.value.trim();
    if (!text) return;
    event.target.reset();
    act(post("/api/memory", { text, kept: true }));
  };
  return html`<details class="tools memory" open=${facts.some(({ kept }) => !kept)}
    onToggle=${look}>
    <summary title="What it remembers of you">
      <${Icon} name="memory" />${facts.length || ""}
    </summary>
    <ul>
      ${facts.map(
        (fact) => html`<${Fact} key=${fact.id} fact=${fact}
          onKeep=${(text) => act(put(`/api/memory/${fact.id}`, { text }))}
          onForget=${() => act(del(`/api/memory/${fact.id}`))} />`,
      )}
      <li><form onSubmit=${add}>
        <input name="fact" maxlength="500" placeholder="Remember that …" aria-label="A fact" />
        <button class="small">keep</button>
      </form></li>
    </ul>
  </details>`;
}

function Fact({ fact, onKeep, onForget }) {
  const keep = (event) => {
    event.preventDefault();
    onKeep(event.target.elements.fact.value);
  };
  const from = fact.turn ? `from turn ${fact.turn}: “${fact.said}”` : "in your words";
  return html`<li class=${fact.kept ? "" : "asked"}>
    <form onSubmit=${keep}>
      <input name="fact" maxlength="500" value=${fact.text} aria-label="A fact" />
      <button class="small">${fact.kept ? "change" : "keep"}</button>
      <button class="small" type="button" onClick=${onForget}>forget</button>
    </form>
    <span>${fact.kept ? from : `not kept yet; ${from}`}</span>
  </li>`;
}

/** Put a message of the user's before them as a fact; it is kept when they say so. */
export const propose = (text, conversation, turn) =>
  post("/api/memory", { text: text.slice(0, 500), conversation, turn, said: text.slice(0, 500) });
