// How one conversation is answered: by which model and adapter, with which system prompt, and how
// its words are drawn. An empty field is as the node's owner has it for all. And the page's
// language and shortcuts.

import { html, useEffect, useState } from "./vendor/htm-preact.js";
import { get, MAX_TOKENS } from "./api.js";
import { adapterName, Panel } from "./parts.js";
import { language, LANGUAGES, t } from "./texts.js";

// as the API takes them (`core/server/requests.py`)
const NUMBERS = {
  temperature: { min: 0, max: 2, step: "any" },
  top_p: { min: 0.01, max: 1, step: "any" },
  max_tokens: { min: 1, max: 1_048_576, step: 1, placeholder: MAX_TOKENS },
  seed: { min: 0, max: Number.MAX_SAFE_INTEGER, step: 1 },
};

/** Without what was emptied. */
const without = (settings) =>
  Object.fromEntries(Object.entries(settings).filter(([, value]) => value !== undefined));

export function Settings({ settings, adapters, onChange, onClose }) {
  const [models, setModels] = useState([]);
  const [told, setTold] = useState("");
  const [draft, setDraft] = useState({}); // as it is typed; it counts when its field is left
  const value = (name) => draft[name] ?? settings[name] ?? "";
  const typed = (name) => (event) => setDraft({ ...draft, [name]: event.target.value });
  useEffect(() => {
    get("/v1/models")
      .then(({ data }) => setModels(data.filter(({ kind }) => kind !== "embedding")))
      .catch((error) => setTold(error.message));
  }, []);
  const set = (name, value) => onChange(without({ ...settings, [name]: value }));
  const number = (name) => (event) => {
    const { value: text, validity } = event.target;
    if (validity.valid) set(name, text === "" ? undefined : Number(text));
    event.target.reportValidity();
  };
  const named = ({ id }) => {
    const [model, adapter] = id.split(":");
    const found = adapters.adapters.find((one) => one.id === adapter);
    return found ? `${model} · ${adapterName(found)}` : id;
  };
  return html`<${Panel} title=${t("settings.title")} onClose=${onClose}>
    <div class="fields">
      <label><span>${t("settings.model")}</span>
        <select value=${settings.model ?? ""}
          onChange=${(event) => set("model", event.target.value || undefined)}>
          <option value="" selected=${!settings.model}>${t("settings.model.default")}</option>
          ${models.map(
            (one) => html`<option value=${one.id} selected=${one.id === settings.model}>
              ${named(one)}
            </option>`,
          )}
        </select>
      </label>
      <label class="wide"><span>${t("settings.system")}</span>
        <textarea rows="4" value=${value("system")} placeholder=${t("settings.system.none")}
          onInput=${typed("system")}
          onChange=${(event) => set("system", event.target.value.trim())} />
      </label>
      ${Object.entries(NUMBERS).map(
        ([name, { placeholder = t("settings.default"), ...range }]) => html`<label>
          <span>${t(`settings.${name}`)}</span>
          <input type="number" name=${name} value=${value(name)} ...${range}
            onInput=${typed(name)} placeholder=${placeholder} onChange=${number(name)} />
        </label>`,
      )}
    </div>
    ${told && html`<p class="error" role="alert">${told}</p>`}
    <p class="faint">${t("settings.about")}</p>
  <//>`;
}

export const SHORTCUTS = [
  ["N", "fresh"], ["H", "history.title"], ["K", "composer.label"], ["S", "settings.title"],
  ["F", "federation.title"], ["M", "model.title"],
  ["R", "again"], ["C", "copy.label"], ["A", "help.title"],
];

export const Help = ({ onLanguage, onClose }) => html`
  <${Panel} title=${t("help.title")} onClose=${onClose}>
    <div class="fields"><label><span>${t("help.language")}</span>
      <select onChange=${(event) => onLanguage(event.target.value)}>
        ${Object.entries(LANGUAGES).map(
          ([id, name]) =>
            html`<option value=${id} lang=${id} selected=${id === language}>${name}</option>`,
        )}
      </select>
    </label></div>
    <h3>${t("help.shortcuts")}</h3>
    <dl class="shortcuts">
      ${SHORTCUTS.map(([key, name]) => html`<div>
        <dt><kbd>Alt</kbd><kbd>${t("key.shift")}</kbd><kbd>${key}</kbd></dt>
        <dd>${t(name)}</dd>
      </div>`)}
      <div><dt><kbd>${t("key.enter")}</kbd></dt><dd>${t("send")}</dd></div>
      <div>
        <dt><kbd>${t("key.shift")}</kbd><kbd>${t("key.enter")}</kbd></dt>
        <dd>${t("help.line")}</dd>
      </div>
      <div><dt><kbd>${t("key.escape")}</kbd></dt><dd>${t("help.escape")}</dd></div>
    </dl>
  <//>
`;
