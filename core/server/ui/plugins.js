// Plugins: which are installed, what they may use, which the trusted registries have, who reviewed
// them. A registry is asked only by a click; nothing is installed before its owner saw all of it.

import { html, useEffect, useState } from "./vendor/htm-preact.js";
import { del, get, post } from "./api.js";
import { Panel } from "./parts.js";
import { known, moment, rich, t } from "./texts.js";

export function Plugins({ onClose }) {
  const [there, setThere] = useState(null);
  const [found, setFound] = useState(null); // what a search brought
  const [offer, setOffer] = useState(null); // a release, before anything is installed
  const [news, setNews] = useState(null); // what a look brought
  const [told, setTold] = useState("");
  const [busy, setBusy] = useState(false);
  const act = async (work) => {
    setTold("");
    setBusy(true);
    await work().catch((error) => setTold(error.message));
    setBusy(false);
  };
  const look = () => get("/api/plugins").then(setThere);
  useEffect(() => {
    act(look);
  }, []);
  const search = (event) => {
    event.preventDefault();
    const words = event.target.elements.words.value;
    act(() => post("/api/plugins/search", { words }).then(({ plugins }) => setFound(plugins)));
  };
  const ask = (id, registry = "") =>
    act(() => post("/api/plugins/offer", { id, registry }).then(setOffer));
  const install = () =>
    act(async () => {
      const { id, version, registry, sha256 } = offer;
      await post("/api/plugins/install", { id, version, registry, sha256 });
      setOffer(null);
      setNews(null);
      await look();
      setTold(t("plugin.later", { id }));
    });
  const remove = (id) => act(() => del(`/api/plugins/${id}`).then(look));
  const refresh = () => act(() => post("/api/plugins/look", {}).then(setNews).then(look));
  const newer = Object.fromEntries((news?.newer ?? []).map(({ id, version }) => [id, version]));
  const trusts = there?.registries.length > 0;
  return html`<${Panel} title=${t("plugin.title")} onClose=${onClose}>
    ${told && html`<p class="error" role="alert">${told}</p>`}
    ${news?.registries.map(
      ({ name, problem }) => problem && html`<p class="error" key=${name}>${problem}</p>`,
    )}
    ${offer &&
    html`<${Offer} key=${offer.sha256} offer=${offer} busy=${busy} onInstall=${install}
      onCancel=${() => setOffer(null)} />`}
    <h3>${t("plugin.here")}</h3>
    ${!there && !told && html`<p class="thinking">${t("looking")}</p>`}
    <ul class="models">
      ${there?.installed.map(
        (one) => html`<${Installed} key=${one.id} plugin=${one} newer=${newer[one.id]}
          onUpdate=${() => ask(one.id)} onRemove=${() => remove(one.id)} />`,
      )}
    </ul>
    ${trusts &&
    html`<div class="choices">
      <button disabled=${busy} onClick=${refresh}>${t("plugin.look")}</button>
    </div>`}
    <h3>${t("plugin.market")}</h3>
    ${there && !trusts && html`<${NoRegistry} />`}
    ${trusts &&
    html`<form class="model-search" onSubmit=${search}>
        <input type="search" name="words" placeholder=${t("plugin.search")}
          aria-label=${t("plugin.search")} />
        <button class="small" disabled=${busy}>${t("model.search.do")}</button>
      </form>
      <ul class="models">
        ${found?.map(
          (one) => html`<${Found} key=${one.registry + one.id} plugin=${one}
            onShow=${() => ask(one.id, one.registry)} />`,
        )}
      </ul>
      ${found && !found.length && html`<p class="faint">${t("history.none.found")}</p>`}`}
  <//>`;
}

function NoRegistry() {
  const command = html`<code>
    quietchoir plugin registry trust NAME URL --root-sha256 DIGEST
  </code>`;
  return html`<p class="faint">${rich("plugin.registry.none", { command })}</p>`;
}

/** What it may use, in the reader's words; a kind that this page does not know is named. */
const may = ({ kind, value }) =>
  known(`plugin.may.${kind}`, `${kind}: ${value}`, { value });

const Permissions = ({ rows }) => html`<ul class="permissions">
  ${rows.map((row) => html`<li key=${row.kind}>${may(row)}</li>`)}
</ul>`;

function Installed({ plugin, newer, onUpdate, onRemove }) {
  const [asked, setAsked] = useState(false);
  const about = [
    plugin.version,
    plugin.registry && t("plugin.from", { registry: plugin.registry }),
    plugin.pinned && t("plugin.pinned"),
    !plugin.runs && !plugin.stopped && t(plugin.removable ? "plugin.idle" : "plugin.off"),
  ];
  return html`<li>
    <div><b>${plugin.id}</b><span>${about.filter(Boolean).join(" · ")}</span>
      <span>${plugin.description}</span>
      ${plugin.stopped && html`<span class="bad">${plugin.stopped}</span>`}
      <details><summary>${t("plugin.may")}</summary><${Permissions} rows=${plugin.permissions} />
      </details>
    </div>
    ${newer &&
    html`<button class="small" onClick=${onUpdate}
      aria-label=${t("plugin.update.label", { id: plugin.id })}>
      ${t("plugin.update", { version: newer })}
    </button>`}
    ${plugin.removable && !asked &&
    html`<button class="small" onClick=${() => setAsked(true)}
      aria-label=${t("model.remove.label", { name: plugin.id })}>${t("model.remove")}</button>`}
    ${asked &&
    html`<div class="choices" role="group" aria-label=${t("history.delete.question")}>
      <button onClick=${onRemove}>${t("plugin.remove.yes")}</button>
      <button onClick=${() => setAsked(false)}>${t("history.delete.no")}</button>
    </div>`}
  </li>`;
}

function Found({ plugin, onShow }) {
  const asks = (plugin.sensitive ?? []).map((kind) => known(`plugin.kind.${kind}`, kind));
  return html`<li>
    <div><b>${plugin.id}</b>
      <span>${[plugin.version, plugin.registry, plugin.price || t("plugin.free")]
        .join(" · ")}</span>
      <span>${plugin.description}</span>
      ${plugin.revoked && html`<span class="bad">${plugin.revoked}</span>`}
      <span>${asks.length ? t("plugin.asks", { kinds: asks.join(", ") }) : ""}</span>
    </div>
    <button class="small" onClick=${onShow}
      aria-label=${t("plugin.show.label", { id: plugin.id })}>${t("plugin.show")}</button>
  </li>`;
}

/** Everything about one release, and the question. */
function Offer({ offer, busy, onInstall, onCancel }) {
  const key = html`<code>${offer.author_key.slice(0, 16)}</code>`;
  return html`<section class="offer" aria-label=${offer.id}>
    <p><b>${offer.id} ${offer.version}</b> ${offer.description}</p>
    ${offer.before && html`<p class="bad">
      ${offer.new.length
        ? t("plugin.new", { before: offer.before, fresh: offer.new.join("; ") })
        : t("plugin.new.none", { before: offer.before })}
    </p>`}
    <p>${t("plugin.price", { price: offer.price || t("plugin.free"), licence: offer.licence })}
      ${offer.shop ? ` ${offer.shop}` : ""}</p>
    <p>${t("plugin.may")}</p>
    <${Permissions} rows=${offer.permissions} />
    <ul class="permissions">
      ${offer.tools.map(
        (tool) => html`<li key=${tool.name}><b>${tool.name}</b>
          ${` (${known(`effect.${tool.effect}`, tool.effect)}) ${tool.description}`}</li>`,
      )}
    </ul>
    ${offer.reviews.map((one) => html`<${Review} key=${one.reviewer} review=${one} />`)}
    <p class="faint">${rich("plugin.author", { key, registry: offer.registry })}</p>
    <div class="choices">
      <button class="yes" disabled=${busy} onClick=${onInstall}>
        ${t(offer.before ? "plugin.update.do" : "plugin.install")}
      </button>
      <button onClick=${onCancel}>${t("cancel")}</button>
    </div>
  </section>`;
}

function Review({ review: one }) {
  const said = { reviewer: one.reviewer, when: moment(one.at), what: one.checked.join(", ") };
  return html`<p>${t(`plugin.review.${one.verdict}`, said)}${one.notes ? ` “${one.notes}”` : ""}</p>
    <details>
      <summary>
        ${t("plugin.scan", { count: one.found.length })}
      </summary>
      <ul class="permissions">${one.found.map((row) => html`<li>${row}</li>`)}</ul>
      <p class="faint">${one.scanned}</p>
    </details>`;
}
