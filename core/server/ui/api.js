// The node's API: token, requests, and one answer as a stream of events.
// Knows nothing of what is on screen.

import { known, t } from "./texts.js";

const KEY = "token";
export const MAX_TOKENS = 512; // of an answer, where its owner says nothing

/** Take the token out of the address (#token=…): it stays neither in the history nor in a link. */
export function keepToken() {
  const given = new URLSearchParams(location.hash.slice(1)).get("token");
  if (given) {
    sessionStorage.setItem(KEY, given);
    history.replaceState(null, "", location.pathname);
  }
  return Boolean(sessionStorage.getItem(KEY));
}

export function setToken(token) {
  sessionStorage.setItem(KEY, token.trim());
}

export class Refusal extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/** What the node refused, in the reader's language as far as its code has a text. */
const refused = ({ message, code }) => known(`refusal.${code}`, message, { said: message });

/** A browser says "Failed to fetch" whatever happened: say what can be done. */
function lost(error, words) {
  return error.name === "AbortError" ? error : new Refusal(0, words);
}

async function request(path, options = {}) {
  const headers = { Authorization: `Bearer ${sessionStorage.getItem(KEY) ?? ""}` };
  if (typeof options.body === "string") headers["Content-Type"] = "application/json";
  const response = await fetch(path, { ...options, headers }).catch((error) => {
    throw lost(error, t("node.gone"));
  });
  if (!response.ok) {
    const body = await response.json().catch(() => ({}));
    const { status } = response;
    const words = body.error ? refused(body.error) : t("node.status", { status: `${status}` });
    throw new Refusal(status, words);
  }
  return response;
}

export const get = async (path) => (await request(path)).json();
export const post = async (path, body) =>
  (await request(path, { method: "POST", body: JSON.stringify(body) })).json();
export const put = async (path, body) =>
  (await request(path, { method: "PUT", body: JSON.stringify(body) })).json();
/** A file's bytes, as they are. */
export const putFile = async (path, file) =>
  (await request(path, { method: "PUT", body: file })).json();
export const del = async (path) => (await request(path, { method: "DELETE" })).json();

/**
 * Ask, and yield each chunk of the answer as it comes. `signal` aborts; memory is freed. The node
 * keeps the conversation under its name; `settings` say how it is answered.
 */
export async function* ask(messages, conversation, settings, signal) {
  const { system, ...chosen } = settings;
  const body = {
    messages: system ? [{ role: "system", content: system }, ...messages] : messages,
    stream: true,
    stream_options: { include_usage: true },
    max_tokens: MAX_TOKENS,
    memory: true,
    metadata: { conversation, source: "page" },
    ...chosen,
  };
  const asked = { method: "POST", body: JSON.stringify(body), signal };
  const response = await request("/v1/chat/completions", asked);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read().catch((error) => {
      throw lost(error, t("node.broken"));
    });
    if (done) break;
    held += value;
    const events = held.split("\n\n");
    held = events.pop();
    for (const event of events) {
      if (!event.startsWith("data: ")) continue;
      const data = event.slice(6);
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new Refusal(500, refused(chunk.error));
      yield chunk;
    }
  }
  throw new Refusal(0, t("node.broken"));
}
