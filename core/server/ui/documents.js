// Documents and memory: which collections an answer may cite, files that come into them, what an
// answer cites, what is remembered.
// Knows the node's addresses for them. Whatever a document says stands here as text, never as HTML.

import { html, useEffect, useRef, useState } from "./vendor/htm-preact.js";
import { del, get, post, put, putFile } from "./api.js";
import { Menu, Round } from "./parts.js";
import { t } from "./texts.js";

const DROPPED = "dropped"; // the collection for files where a conversation has chosen none

/** Files for answers to cite: dropped anywhere on the page, or picked. */
export function Files({ chosen, onTaken }) {
  const [over, setOver] = useState(false);
  const [told, setTold] = useState("");
  const picker = useRef(null);
  const take = async (files) => {
    const collection = chosen[0] ?? DROPPED;
    const there = `/api/collections/${encodeURIComponent(collection)}/documents`;
    let [file, count] = ["", 0];
    try {
      const { collections } = await get("/api/collections");
      const exists = collections.some(({ name }) => name === collection);
      if (!exists) await post("/api/collections", { name: collection });
      for (const one of files) {
        file = one.name;
        setTold(t("drop.reading", { file }));
        count += (await putFile(`${there}/${encodeURIComponent(file)}`, one)).passages;
      }
      const names = files.map(({ name }) => name).join(", ");
      setTold(t("drop.done", { files: names, count, collection }));
      onTaken(collection);
    } catch (error) {
      setTold(t("drop.failed", { file: file || collection, said: error.message }));
    }
  };
  // on the whole page, with what is drawn: it must know which collections are chosen now
  useEffect(() => {
    const dragged = (event) => {
      if (!event.dataTransfer?.types.includes("Files")) return;
      event.preventDefault(); // the browser would open the file in the page's place
      setOver(event.type === "dragover");
      if (event.type === "drop") take([...event.dataTransfer.files]);
    };
    const left = ({ relatedTarget }) => relatedTarget || setOver(false);
    for (const kind of ["dragover", "drop"]) document.addEventListener(kind, dragged);
    document.addEventListener("dragleave", left);
    return () => {
      for (const kind of ["dragover", "drop"]) document.removeEventListener(kind, dragged);
      document.removeEventListener("dragleave", left);
    };
  });
  const picked = ({ target }) => {
    take([...target.files]);
    target.value = ""; // the same file may be picked again
  };
  return html`<div class="files">
    <p class="faint" role="status">${told}</p>
    ${over && html`<p class="drop-here">${t("drop.here")}</p>`}
    <input ref=${picker} type="file" multiple hidden onChange=${picked} />
    <${Round} icon="clip" title=${t("drop.pick")} onClick=${() => picker.current.click()} />
  </div>`;
}

const id = ({ name, collection }) => collection ?? name;
const kilobytes = (count) => Math.round(count / 1000);

/** Collections and libraries to choose from; nothing where the node has none. */
export function Collections({ chosen, onChoose }) {
  const [there, setThere] = useState([]);
  const look = () =>
    Promise.all([get("/api/collections"), get("/api/libraries")])
      .then(([{ collections }, { libraries }]) => setThere([...collections, ...libraries]))
      .catch(() => setThere([]));
  useEffect(() => {
    look();
  }, [chosen.length]); // one may have come with a file
  if (!there.length) return null;
  const flip = (name) =>
    onChoose(chosen.includes(name) ? chosen.filter((one) => one !== name) : [...chosen, name]);
  const about = ({ documents, passages }) =>
    `${t("collection.documents", { count: documents })}, ` +
    t("collection.passages", { count: passages });
  // one on another machine: what choosing it means, and what it was sent so far
  const library = ({ url, questions, bytes_up }) =>
    t("library.about", { url }) +
    (questions ? ` ${t("library.sent", { count: questions, kb: kilobytes(bytes_up) })}` : "");
  return html`<${Menu} kind="documents" icon="page" title=${t("collection.title")}
    badge=${chosen.length || ""} onToggle=${look}>
    <ul>
      ${there.map(
        (one) => html`<li><label>
          <input type="checkbox" checked=${chosen.includes(id(one))} disabled=${!!one.problem}
            onChange=${() => flip(id(one))} />
          <b>${id(one)}</b><span>${one.problem || (one.url ? library(one) : about(one))}</span>
        </label></li>`,
      )}
    </ul>
  <//>`;
}

/** The passages that an answer was given, each opens; and who saw what of the question. */
export const Citations = ({ citations, sources }) => html`<div class="citations">
  ${citations.map((one) => html`<${Citation} key=${one.number} citation=${one} />`)}
  ${sources.map((one) => html`<p class="faint source" key=${one.name}>${source(one)}</p>`)}
</div>`;

const source = ({ name, place, sent_bytes, received_bytes, problem }) => {
  if (!place) return t("source.here", { name });
  const sizes = { up: kilobytes(sent_bytes), down: kilobytes(received_bytes) };
  if (problem) return t("source.problem", { name, place, said: problem, ...sizes });
  return t("source.asked", { name, place, ...sizes });
};

function Citation({ citation }) {
  const [shown, setShown] = useState(null);
  const open = (event) => {
    if (!event.target.open || shown) return;
    if (!citation.url) return setShown({ around: [citation], heading: citation.heading });
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
  return html`<${Menu} kind="memory" icon="memory" title=${t("memory.title")}
    badge=${facts.length || ""} open=${facts.some(({ kept }) => !kept)} onToggle=${look}>
    <ul>
      ${facts.map(
        (fact) => html`<${Fact} key=${fact.id} fact=${fact}
          onKeep=${(text) => act(put(`/api/memory/${fact.id}`, { text }))}
          onForget=${() => act(del(`/api/memory/${fact.id}`))} />`,
      )}
      <li><form onSubmit=${add}>
        <input name="fact" maxlength="500" placeholder=${t("memory.new")}
          aria-label=${t("memory.fact")} />
        <button class="small">${t("memory.keep")}</button>
      </form></li>
    </ul>
  <//>`;
}

function Fact({ fact, onKeep, onForget }) {
  const keep = (event) => {
    event.preventDefault();
    onKeep(event.target.elements.fact.value);
  };
  const from = fact.turn ? t("memory.from", { turn: fact.turn, said: fact.said }) : t("memory.own");
  return html`<li class=${fact.kept ? "" : "asked"}>
    <form onSubmit=${keep}>
      <input name="fact" maxlength="500" value=${fact.text} aria-label=${t("memory.fact")} />
      <button class="small">${t(fact.kept ? "memory.change" : "memory.keep")}</button>
      <button class="small" type="button" onClick=${onForget}>${t("memory.forget")}</button>
    </form>
    <span>${fact.kept ? from : t("memory.proposed", { from })}</span>
  </li>`;
}

/** Put a message of the user's before them as a fact; it is kept when they say so. */
export const propose = (text, conversation, turn) =>
  post("/api/memory", { text: text.slice(0, 500), conversation, turn, said: text.slice(0, 500) });
