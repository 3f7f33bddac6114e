// When each subtask was in which state, on one time axis for the whole job.

import { h } from "./dom.js";
import { duration, time } from "./format.js";
import { empty } from "./parts.js";
import { plainText } from "./graph.js";

const ORDER = ["CREATED", "SCHEDULED", "DEPLOYING", "INITIALIZING", "RUNNING", "CANCELING"];
const LAST = new Set(["FINISHED", "CANCELED", "FAILED"]);
const SHOWN = ORDER.slice(1);

/** [{state, from, to}] of one subtask; `now` ends what still goes on. */
export function segments(timestamps, now) {
  const entered = Object.entries(timestamps).filter(([, at]) => at > 0)
    .sort((a, b) => a[1] - b[1] || ORDER.indexOf(a[0]) - ORDER.indexOf(b[0]));
  return entered.map(([state, from], index) => ({ state, from, to: index + 1 < entered.length ? entered[index + 1][1] : now }))
    .filter(({ state }) => SHOWN.includes(state));
}

export function timeline(job, times) {
  const start = job["start-time"];
  const end = job["end-time"] > 0 ? job["end-time"] : job.now;
  const span = Math.max(1, end - start);
  const position = (at) => `${Math.min(100, Math.max(0, (100 * (at - start)) / span))}%`;
  const rows = [];
  for (const vertex of times) {
    rows.push(h("div", { class: "lane head", "data-key": vertex.id }, h("span", { title: plainText(vertex.name) }, plainText(vertex.name)), h("div", { class: "track" })));
    for (const subtask of vertex.subtasks) {
      rows.push(h("div", { class: "lane", "data-key": `${vertex.id}-${subtask.subtask}` }, h("span", { class: "dim" }, `subtask ${subtask.subtask}`),
        h("div", { class: "track" }, segments(subtask.timestamps, end).map(({ state, from, to }) => h("i", {
          class: `state-${state.toLowerCase()}`, title: `${state}: ${duration(to - from)} from ${time(from)}`,
          style: { left: position(from), width: `max(1px, calc(${position(to)} - ${position(from)}))` },
        })))));
    }
  }
  if (!rows.length) return empty("No subtask has been deployed yet");
  const ticks = [0, 0.25, 0.5, 0.75, 1].map((share) => h("span", { style: { left: `${share * 100}%` } }, duration(span * share)));
  return h("div", { class: "timeline" },
    h("div", { class: "legend" }, SHOWN.map((state) => h("span", null, h("i", { class: `state-${state.toLowerCase()}` }), state.toLowerCase()))),
    rows, h("div", { class: "lane axis" }, h("span"), h("div", { class: "track" }, ticks)));
}
