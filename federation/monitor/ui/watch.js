// How a federation's run is doing. Everything comes from /api/status: sums over members, nothing of
// one of them.

import { html, render, useEffect, useLayoutEffect, useRef, useState } from "./vendor/htm-preact.js";
import { get, keepToken, setToken } from "./api.js";
import { speak } from "./texts.js";

const EVERY_MS = 2000;
// the chart is drawn in the page's own pixels, so that its words keep their size on a phone
const NARROW = 220;
const MARK = 56; // pixels between two numbers under it
const HEIGHT = 260;
const EDGE = { left: 48, right: 16, top: 14, bottom: 30 };

const percent = (share) => (share == null ? "–" : `${(100 * share).toFixed(1)} %`);
const megabytes = (count) => `${(count / 1e6).toFixed(count < 1e7 ? 2 : 1)} MB`;
const number = (value, digits) => (value == null ? "–" : value.toFixed(digits));

function Tile({ value, words }) {
  return html`<div class="tile"><b>${value}</b><span>${words}</span></div>`;
}

/** What members voted of changes that they then undid: [rounds behind it, accuracy]. */
function undone(history) {
  const found = [];
  let done = 0;
  for (const entry of history) {
    done += entry.kind === "train" ? 1 : 0;
    if (entry.kept === false && entry.voted !== null) found.push([done, entry.voted]);
  }
  return found;
}

/** The width of an element in pixels, now and whenever it changes. */
function useWidth() {
  const place = useRef(null);
  const [width, setWidth] = useState(0);
  useLayoutEffect(() => {
    const look = () => setWidth(Math.max(NARROW, Math.floor(place.current.clientWidth)));
    const observer = new ResizeObserver(look);
    observer.observe(place.current);
    look();
    return () => observer.disconnect();
  }, []);
  return [place, width];
}

/** Accuracy over rounds, as an SVG that needs no library. A cross: a change that members undid. */
function Curve({ points, crosses, rounds }) {
  const [place, width] = useWidth();
  const chart = () =>
    width > 0 &&
    html`<${Chart} points=${points} crosses=${crosses} rounds=${rounds} width=${width} />`;
  return html`<div ref=${place}>
    ${points.length ? chart() : html`<p class="faint">Nothing was scored yet.</p>`}
  </div>`;
}

function Chart({ points, crosses, rounds, width }) {
  const last = Math.max(rounds, points.at(-1)[0], 1);
  const cross = (px, py) => `M${px - 5},${py - 5}l10,10m0,-10l-10,10`;
  const x = (round) => EDGE.left + (round / last) * (width - EDGE.left - EDGE.right);
  const y = (share) => HEIGHT - EDGE.bottom - share * (HEIGHT - EDGE.top - EDGE.bottom);
  const line = points.map(([round, share]) => `${x(round)},${y(share)}`).join(" ");
  const room = Math.max(1, Math.min(10, Math.floor((width - EDGE.left - EDGE.right) / MARK)));
  const step = Math.ceil(last / room);
  const marks = Array.from({ length: Math.floor(last / step) + 1 }, (_, index) => index * step);
  return html`
    <svg class="curve" width=${width} height=${HEIGHT} viewBox="0 0 ${width} ${HEIGHT}" role="img"
      aria-label="accuracy over rounds">
      ${[0, 0.25, 0.5, 0.75, 1].map(
        (share) => html`
          <line class="grid" x1=${EDGE.left} x2=${width - EDGE.right} y1=${y(share)}
            y2=${y(share)} />
          <text x=${EDGE.left - 8} y=${y(share) + 4} text-anchor="end">${100 * share} %</text>
        `,
      )}
      ${marks.map(
        (round) => html`
          <text class="mark" x=${x(round)} y=${HEIGHT - 8} text-anchor="middle">${round}</text>
        `,
      )}
      <polyline class="line" points=${line} />
      ${points.map(
        ([round, share]) => html`
          <circle cx=${x(round)} cy=${y(share)} r="4">
            <title>after ${round} rounds: ${percent(share)}</title>
          </circle>
        `,
      )}
      ${crosses.map(
        ([round, share]) => html`
          <path class="undone" d=${cross(x(round), y(share))}>
            <title>round ${round}, undone: ${percent(share)}</title>
          </path>
        `,
      )}
    </svg>
  `;
}

function Rounds({ history, noisy }) {
  return html`
    <table>
      <thead>
        <tr>
          <th>round</th><th>in the sum</th><th>dropped out</th><th>up</th><th>down</th>
          <th>seconds</th><th>loss</th><th>accuracy before</th>${noisy && html`<th>epsilon</th>`}
        </tr>
      </thead>
      <tbody>
        ${[...history].reverse().map(
          (entry) => html`
            <tr>
              <td>
                ${entry.kind === "train" ? entry.round : "score"}
                ${entry.kept === false && html` <span class="undone">undone</span>`}
              </td>
              <td>${entry.parties} of ${entry.asked}</td>
              <td class=${entry.dropped ? "bad" : ""}>${entry.dropped}</td>
              <td>${megabytes(entry.bytes_up)}</td>
              <td>${megabytes(entry.bytes_down)}</td>
              <td>${number(entry.seconds, 1)}</td>
              <td>${number(entry.loss, 3)}</td>
              <td>${percent(entry.accuracy)}</td>
              ${noisy && html`<td>${number(entry.epsilon, 2)}</td>`}
            </tr>
          `,
        )}
      </tbody>
    </table>
  `;
}

/** What happens now, in a few words. */
function state(run) {
  if (run.finished) return ["finished", ""];
  const { now, present } = run;
  if (now) return [`round ${now.round}: ${now.ready} of ${now.asked} ready`, "live"];
  return [present === null ? "starting" : `${present} of ${run.members} members are here`, "live"];
}

function Board({ run }) {
  const [words, kind] = state(run);
  const crosses = undone(run.history);
  const none = run.budget === null;
  const spent = none ? "none" : `${number(run.epsilon ?? 0, 2)} of ${number(run.budget, 2)}`;
  const mark = html` <span class="undone">× undone by the members</span>`;
  return html`
    <header class="top">
      <span class="mark ${run.finished ? "" : "singing"}"><i></i><i></i><i></i><i></i><i></i></span>
      <h1>${run.federation}</h1>
      <span class="pill ${kind}">${words}</span>
      <span class="pill">${run.mode}, sums of at least ${run.min_cohort}</span>
      <span class="pill">file version ${run.version}</span>
    </header>
    ${run.reason &&
    html`<p class="error">${run.aborted} aborted, the last one because: ${run.reason}</p>`}
    <section class="tiles">
      <${Tile} value="${run.round} / ${run.rounds}" words="rounds" />
      <${Tile} value=${percent(run.curve.at(-1)?.[1])} words="right on held-out requests" />
      ${run.present === null
        ? html`<${Tile} value=${run.members} words="members" />`
        : html`<${Tile} value="${run.present} of ${run.members}" words="members here" />`}
      <${Tile} value=${run.dropped} words="drop-outs" />
      <${Tile} value=${megabytes(run.bytes_up)} words="from all members" />
      <${Tile} value=${megabytes(run.bytes_down)} words="to all members" />
      <${Tile} value=${spent}
        words=${none ? "differential privacy" : `epsilon, delta ${run.delta}`} />
    </section>
    <section class="panel">
      <h2>accuracy after so many rounds${crosses.length > 0 && mark}</h2>
      <${Curve} points=${run.curve} crosses=${crosses} rounds=${run.rounds} />
    </section>
    <section class="panel">
      <h2>rounds, the newest first</h2>
      <${Rounds} history=${run.history} noisy=${!none} />
    </section>
    <p class="faint">
      Every number is a sum or a count over members. What one member sent is not here, and in masked
      and sealed mode nobody but that member has it.
    </p>
  `;
}

function App() {
  const [token, setHasToken] = useState(keepToken());
  const [run, setRun] = useState(null);
  const [trouble, setTrouble] = useState("");

  useEffect(() => {
    if (!token) return undefined;
    const look = () =>
      get("/api/status")
        .then((found) => {
          setRun(found);
          setTrouble("");
        })
        .catch((error) => {
          if (error.status === 401) setHasToken(false);
          else setTrouble("the coordinator does not answer; it may have ended");
        });
    look();
    const timer = setInterval(look, EVERY_MS);
    return () => clearInterval(timer);
  }, [token]);

  const submit = (event) => {
    event.preventDefault();
    setToken(new FormData(event.target).get("token"));
    setHasToken(true);
  };
  if (!token) {
    return html`<form class="token" onSubmit=${submit}>
      <input name="token" placeholder="the token (file token in the run's folder)" />
      <button>open</button>
    </form>`;
  }
  return html`
    ${trouble && html`<p class="error">${trouble}</p>`} ${run && html`<${Board} run=${run} />`}
  `;
}

await speak("en");
render(html`<${App} />`, document.getElementById("app"));
