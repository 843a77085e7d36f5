// Models: which are on this disk, which fit this machine, what can be had, pulls on their way. A
// hub is asked only where its owner says so; a licence that is not open is agreed to first.

import { html, useEffect, useRef, useState } from "./vendor/htm-preact.js";
import { del, get, post } from "./api.js";
import { Panel } from "./parts.js";
import { known, language, rich, size, t } from "./texts.js";

const LOOK_MS = 700; // while something is on its way

export function Models({ onClose }) {
  const [there, setThere] = useState(null);
  const [pulls, setPulls] = useState([]);
  const [found, setFound] = useState(null); // what a search brought
  const [offer, setOffer] = useState(null); // what a pull would bring
  const [told, setTold] = useState("");
  const act = (work) => {
    setTold("");
    return work.catch((error) => setTold(error.message));
  };
  const look = () => act(get("/api/models").then(setThere));
  const running = pulls.filter(({ state }) => state === "running").length;
  const before = useRef(0);
  const lookPulls = () => act(get("/api/models/pulls").then((body) => setPulls(body.pulls)));
  useEffect(() => {
    look();
    lookPulls();
  }, []);
  useEffect(() => {
    if (running < before.current) look(); // one has ended
    before.current = running;
    if (!running) return;
    const timer = setInterval(lookPulls, LOOK_MS);
    return () => clearInterval(timer);
  }, [running]);
  const search = (event) => {
    event.preventDefault();
    const { words, hub } = event.target.elements;
    if (!words.value.trim()) return setFound(null);
    const asked = words.value.trim();
    if (asked.includes(":")) return ask(asked); // a name of a hub's
    const places = hub.checked ? [false, true] : [false];
    const parts = places.map((hub) => post("/api/models/search", { words: asked, hub }));
    act(Promise.all(parts).then((all) => setFound(all.flatMap(({ models }) => models))));
  };
  const ask = (name) =>
    act(post("/api/models/offer", { name }).then((would) => setOffer({ ...would, asked: name })));
  const pull = ({ asked: name, licence, asks }) =>
    act(
      post("/api/models/pulls", { name, ...(asks && { accept_licence: licence }) }).then(() => {
        setOffer(null);
        return lookPulls();
      }),
    );
  const stop = (id) => act(del(`/api/models/pulls/${id}`).then(lookPulls));
  const remove = (name) => act(del(`/api/models/${name}`).then(look));
  const offered = found ?? there?.known ?? [];
  return html`<${Panel} title=${t("model.title")} onClose=${onClose}>
    ${there && html`<p class="faint">
      ${t("model.memory", { free: size(there.memory.free), limit: size(there.memory.limit) })}
    </p>`}
    ${told && html`<p class="error" role="alert">${told}</p>`}
    ${pulls.map((one) => html`<${Pull} key=${one.id} pull=${one} onStop=${() => stop(one.id)} />`)}
    ${offer && html`<${Offer} key=${JSON.stringify(offer)} offer=${offer}
      onPull=${() => pull(offer)} onCancel=${() => setOffer(null)} />`}
    <h3>${t("model.here")}</h3>
    ${!there && !told && html`<p class="thinking">${t("looking")}</p>`}
    <ul class="models">
      ${there?.installed.map(
        (one) => html`<${Model} key=${one.name} model=${one} here=${true}
          current=${one.name === there.default} onRemove=${() => remove(one.name)} />`,
      )}
    </ul>
    <h3>${t("model.known")}</h3>
    <form class="model-search" onSubmit=${search}>
      <input type="search" name="words" placeholder=${t("model.search")}
        aria-label=${t("model.search")} />
      <label><input type="checkbox" name="hub" /> <span>${t("model.search.hub")}</span></label>
      <button class="small">${t("model.search.do")}</button>
    </form>
    <ul class="models">
      ${offered.map(
        (one) => html`<${Model} key=${one.name} model=${one} onPull=${() => ask(one.name)} />`,
      )}
    </ul>
    ${found && !found.length && html`<p class="faint">${t("history.none.found")}</p>`}
  <//>`;
}

/** Does it run here, and about how fast. */
function fits(fit) {
  if (!fit) return "";
  if (!fit.fits) return t("model.fits.not", { needs: size(fit.bytes) });
  const rate = fit.tokens_per_s.toLocaleString(language, { maximumSignificantDigits: 2 });
  return t(fit.now ? "model.fits" : "model.fits.later", { needs: size(fit.bytes), rate });
}

function Model({ model, here, current, onPull, onRemove }) {
  const [asked, setAsked] = useState(false);
  const about = [
    model.bytes && size(model.bytes),
    known(`model.kind.${model.kind}`, model.kind),
    model.licence,
    model.loaded && t("model.loaded"),
    current && t("model.current"),
  ];
  return html`<li>
    <div><b>${model.name}</b><span>${about.filter(Boolean).join(" · ")}</span>
      <span class=${model.fit && !model.fit.fits ? "bad" : ""}>
        ${model.refused || fits(model.fit)}
      </span>
    </div>
    ${onPull &&
    html`<button class="small" aria-label=${t("model.pull.label", { name: model.name })}
      onClick=${onPull}>${t("model.pull")}</button>`}
    ${here && model.removable && !asked &&
    html`<button class="small" aria-label=${t("model.remove.label", { name: model.name })}
      onClick=${() => setAsked(true)}>${t("model.remove")}</button>`}
    ${asked &&
    html`<div class="choices" role="group" aria-label=${t("history.delete.question")}>
      <button onClick=${onRemove}>${t("model.remove.yes", { size: size(model.bytes) })}</button>
      <button onClick=${() => setAsked(false)}>${t("history.delete.no")}</button>
    </div>`}
  </li>`;
}

/** What would come, under which licence, before anything is brought. */
function Offer({ offer, onPull, onCancel }) {
  const [agreed, setAgreed] = useState(!offer.asks);
  const page = html`<span>${offer.page || offer.source}</span>`;
  return html`<section class="offer" aria-label=${offer.name}>
    <p><b>${offer.name}</b> ${t("model.offer", {
      count: offer.files.length, size: size(offer.bytes), licence: offer.licence || "?",
    })}</p>
    <p class="faint">${rich("model.offer.from", { page })}</p>
    ${offer.asks &&
    html`<label><input type="checkbox" checked=${agreed}
      onChange=${(event) => setAgreed(event.target.checked)} />
      <span>${t("model.licence.agree", { licence: offer.licence })}</span></label>`}
    <div class="choices">
      <button class="yes" disabled=${!agreed} onClick=${onPull}>${t("model.pull")}</button>
      <button onClick=${onCancel}>${t("cancel")}</button>
    </div>
  </section>`;
}

function Pull({ pull, onStop }) {
  const running = pull.state === "running";
  const some = { done: size(pull.bytes), total: size(pull.total) };
  return html`<section class="offer" aria-label=${pull.name}>
    <p><b>${pull.model || pull.name}</b> ${t(`model.state.${pull.state}`, some)}</p>
    ${running &&
    html`<progress max=${pull.total || 1} value=${pull.bytes}
      aria-label=${t("model.progress", { name: pull.name })} />`}
    ${pull.error && pull.state === "failed" && html`<p class="error">${pull.error}</p>`}
    <div class="choices">
      <button onClick=${onStop}>${t(running ? "stop" : "model.state.forget")}</button>
    </div>
  </section>`;
}
