// This node's part in federations: what left it, when, under which protection, what it cost in
// privacy, what the next round would train on, and the word that pauses it. Everything is shown as
// the node says it; nothing is counted here.

import { html, useEffect, useState } from "./vendor/htm-preact.js";
import { get, post } from "./api.js";
import { Panel } from "./parts.js";
import { known, language, moment, rich, size, t } from "./texts.js";

const SHORT = 12; // letters of a digest

export function Federations({ onClose }) {
  const [there, setThere] = useState(null);
  const [told, setTold] = useState("");
  const look = () =>
    get("/api/federations")
      .then(({ federations }) => setThere(federations))
      .catch((error) => setTold(error.message));
  useEffect(() => {
    look();
  }, []);
  const pause = (id, paused) =>
    post(`/api/federations/${id}`, { paused })
      .then(look)
      .catch((error) => setTold(error.message));
  return html`<${Panel} title=${t("federation.title")} onClose=${onClose}>
    ${there?.length === 0 && html`<${NoMember} />`}
    ${there?.map(
      (one) => html`<${Federation} key=${one.id} federation=${one}
        onPause=${(paused) => pause(one.id, paused)} />`,
    )}
    ${told && html`<p class="error" role="alert">${told}</p>`}
  <//>`;
}

/** What its member told last; most kinds of events have a text, the others come in words. */
const told = ({ words, event, ...values }) => known(`federation.event.${event}`, words, values);

function NoMember() {
  const command = html`<code>quietchoir serve --federation federation.toml</code>`;
  return html`<p>${t("federation.none")}</p>
    <p class="faint">${rich("federation.join", { command })}</p>`;
}

function Federation({ federation: one, onPause }) {
  const fact = (name, value) => html`<dt>${t(`federation.${name}`)}</dt><dd>${value}</dd>`;
  const epsilon = (value) => value.toLocaleString(language, { maximumFractionDigits: 3 });
  const { privacy } = one;
  return html`<section aria-label=${one.name}>
    <h3>${one.name}</h3>
    <p role="status">
      ${one.paused ? t("federation.paused") : one.latest ? told(one.latest) : t("federation.away")}
    </p>
    <div class="choices">
      <button onClick=${() => onPause(!one.paused)}>
        ${t(one.paused ? "federation.resume" : "federation.pause")}
      </button>
    </div>
    <dl class="facts">
      ${fact("protection", known(`federation.mode.${one.mode}`, one.mode))}
      ${fact("cohort", t("federation.cohort.of", { least: one.min_cohort, count: one.members }))}
      ${fact(
        "privacy",
        privacy
          ? t("federation.epsilon", {
              spent: epsilon(privacy.epsilon),
              budget: epsilon(privacy.budget),
              delta: privacy.delta.toExponential(),
            })
          : t("federation.epsilon.none"),
      )}
      ${fact("sent", size(one.bytes))}
      ${fact("coordinator", one.coordinator)}
      ${fact("version", one.version)}
    </dl>
    <h3>${t("federation.rounds")}</h3>
    ${one.rounds.length ? html`<${Rounds} rounds=${one.rounds} />` : t("federation.rounds.none")}
    <h3>${t("federation.training")}</h3>
    <${Training} id=${one.id} />
  </section>`;
}

function Rounds({ rounds }) {
  const parts = ({ stages }) =>
    Object.entries(stages)
      .sort(([, one], [, other]) => other - one)
      .map(([stage, bytes]) => `${known(`federation.stage.${stage}`, stage)} ${size(bytes)}`)
      .join(", ");
  const head = ["round", "when", "under", "parts", "bytes"];
  return html`<div class="scrolls" tabindex="0" role="group" aria-label=${t("federation.rounds")}>
    <table>
      <thead><tr>${head.map((one) => html`<th scope="col">${t(`federation.${one}`)}</th>`)}</tr>
      </thead>
      <tbody>
        ${rounds.map(
          (one) => html`<tr key=${one.run + one.round}>
            <td>${one.round}</td><td>${moment(one.at)}</td>
            <td>${known(`federation.mode.${one.mode}.short`, one.mode)}</td>
            <td>${parts(one)}</td><td class="number">${size(one.bytes)}</td>
          </tr>`,
        )}
      </tbody>
    </table>
  </div>`;
}

/** The examples, redacted, as `data show --for` prints them; looked up when they are asked for. */
function Training({ id }) {
  const [found, setFound] = useState(null);
  const [told, setTold] = useState("");
  useEffect(() => {
    get(`/api/federations/${id}/training`)
      .then(setFound)
      .catch((error) => setTold(error.message));
  }, [id]);
  if (told) return html`<p class="error" role="alert">${told}</p>`;
  if (!found) return html`<p class="thinking">${t("looking")}</p>`;
  const counted = (values, key) =>
    Object.entries(values ?? {})
      .filter(([, count]) => count)
      .map(([name, count]) => `${known(`${key}.${name}`, name)} ${count}`)
      .join(", ");
  const [out, taken] = [counted(found.left_out, "left_out"), counted(found.redacted, "redacted")];
  const command = html`<code>quietchoir data show --for ${found.file}</code>`;
  const more = found.train - found.examples.length;
  return html`
    <p>${t(`federation.source.${found.source}`, { count: found.train, test: found.test })}</p>
    ${out && html`<p class="faint">${t("federation.left_out", { out })}</p>`}
    ${taken && html`<p class="faint">${t("federation.redacted", { taken })}</p>`}
    ${found.digest &&
    html`<p class="faint">${t("federation.digest", { digest: found.digest.slice(0, SHORT) })}</p>`}
    ${found.examples.length > 0 &&
    html`<ul class="examples" tabindex="0" aria-label=${t("federation.training")}>
      ${found.examples.map(
        (messages) => html`<li>
          ${messages.map(
            ({ role, content }) =>
              html`<div><b>${known(`role.${role}`, role)}</b><span>${content}</span></div>`,
          )}
        </li>`,
      )}
    </ul>`}
    ${more > 0 && html`<p class="faint">${t("federation.more", { count: more })}</p>`}
    ${found.source === "conversations" &&
    html`<p class="faint">${rich("federation.whole", { command })}</p>`}
  `;
}
