// What a library's host can see of those who ask, and what it cannot. Everything comes from
// /api/status: counts, sizes and times; there is nothing else to show.

import { html, render, useEffect, useState } from "./vendor/htm-preact.js";
import { get, keepToken } from "./api.js";
import { speak } from "./texts.js";

const EVERY_MS = 2000;
const kilobytes = (count) => `${(count / 1000).toFixed(0)} kB`;
const when = (seconds) => (seconds ? new Date(1000 * seconds).toLocaleString() : "–");

function Accounts({ accounts, limit }) {
  if (!accounts.length) return html`<p class="faint">Nobody has asked yet.</p>`;
  return html`<table>
    <thead><tr>
      <th>account</th><th>questions</th><th>passages read</th><th>texts classified</th>
      <th>maps</th><th>last seen</th>
    </tr></thead>
    <tbody>${accounts.map(
      (one) => html`<tr key=${one.account}>
        <td>${one.name || one.account.slice(0, 16)}</td>
        <td>${one.questions} of ${limit}</td><td>${one.choices} of ${limit}</td>
        <td>${one.classified} of ${limit}</td><td>${one.maps} of ${limit}</td>
        <td>${when(one.last)}</td>
      </tr>`,
    )}</tbody>
  </table>`;
}

function Library() {
  const [seen, setSeen] = useState(null);
  const [problem, setProblem] = useState("");
  useEffect(() => {
    const look = () =>
      get("/api/status")
        .then((status) => (setSeen(status), setProblem("")))
        .catch((error) => setProblem(error.message));
    look();
    const clock = setInterval(look, EVERY_MS);
    return () => clearInterval(clock);
  }, []);
  if (!seen) return html`<p role="status">${problem || "…"}</p>`;
  return html`
    <h1>${seen.title}</h1>
    <p>${seen.passages} passages, edition ${seen.edition.slice(0, 8)}; ${seen.limit} questions to an
      account. A question is ${kilobytes(seen.question_bytes)} up and
      ${" "}${kilobytes(seen.answer_bytes)} down, whatever it is.</p>
    ${problem && html`<p class="error" role="alert">${problem}</p>`}
    <div class="sides">
      <section class="panel"><h2>This host can see</h2>
        <ul>${seen.sees.map((one) => html`<li>${one}</li>`)}</ul>
      </section>
      <section class="panel"><h2>It cannot see</h2>
        <ul>${seen.hidden.map((one) => html`<li>${one}</li>`)}</ul>
      </section>
    </div>
    <section class="panel"><h2>What it has seen</h2>
      <${Accounts} accounts=${seen.accounts} limit=${seen.limit} />
    </section>
    <p class="faint">${seen.answered} requests answered and ${seen.refused} refused since
      ${" "}${when(seen.since)}, in ${seen.seconds.toFixed(1)} s of work; keys of
      ${" "}${seen.keys} askers held; ${seen.restarts} worker
      crashes survived.</p>`;
}

keepToken();
await speak("en");
render(html`<${Library} />`, document.getElementById("app"));
