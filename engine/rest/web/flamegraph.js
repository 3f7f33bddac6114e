// The flame graph of a vertex: while its page is open the stacks of its running subtasks are looked at again and again,
// and what was seen adds up. Choosing another vertex or subtask begins anew; type, zoom and search only change the view.

import { getJson } from "./api.js";
import { h, morphChildren } from "./dom.js";
import { count, duration } from "./format.js";
import { empty, table } from "./parts.js";

export const KINDS = [["on_cpu", "On-CPU"], ["off_cpu", "Off-CPU"], ["full", "Mixed"]]; // Flink's, in its order
const LOOKS = 100;
const INTERVAL_MS = 10;
const NODES_MAX = 20000; // kept: beyond it what was seen least goes
const FRAMES_MAX = 4000; // drawn
const SHARE_MIN = 0.001; // of the width: narrower frames could be neither seen nor hit
const ROW_PX = 20;
const LINES = 12;
const NOT_RUNNING = "(not running"; // how the name of the one node begins that stands for no stack

let shown = null; // what is gathered for the page that is open

const node = (name) => ({ name, value: 0, children: new Map() });
const fresh = (key) => ({ key, root: node("all"), nodes: 0, looked: 0, asking: false, error: "", kind: "", zoom: [], query: "", note: "" });

/** Start another round unless one is under way; return what has been gathered so far. `running`: subtasks to look at. */
export function gather(jid, vid, kind, subtask, running) {
  const key = `${jid}/${vid}/${subtask}`;
  if (!shown || shown.key !== key) shown = fresh(key);
  const session = shown;
  session.kind = kind;
  session.running = running;
  if (running && !session.asking) {
    session.asking = true;
    const one = subtask === "" ? "" : `&subtaskindex=${subtask}`;
    getJson(`jobs/${jid}/vertices/${vid}/flamegraph?type=full&samples=${LOOKS}&interval=${INTERVAL_MS}${one}`)
      .then(({ data }) => { add(session, session.root, data); session.looked += LOOKS * INTERVAL_MS; session.error = ""; })
      .catch((error) => { session.error = error.message; })
      .finally(() => { session.asking = false; redraw(session); });
  }
  return session;
}

function add(session, into, seen) {
  into.value += seen.value;
  for (const child of seen.children) {
    if (!into.children.has(child.name)) { into.children.set(child.name, node(child.name)); session.nodes += 1; }
    add(session, into.children.get(child.name), child);
  }
  if (into === session.root) for (let least = 1; session.nodes > NODES_MAX; least *= 2) session.nodes = pruned(session.root, least);
}

function pruned(tree, least) {
  let left = 0;
  for (const [name, child] of tree.children) {
    if (child.value <= least) tree.children.delete(name);
    else left += 1 + pruned(child, least);
  }
  return left;
}

const resting = ({ root }) => [...root.children].reduce((sum, [name, child]) => sum + (name.startsWith(NOT_RUNNING) ? child.value : 0), 0);
const running = (session) => session.root.value - resting(session);

/** The tree of a type. Its value may be more than that of its children: what was seen least is not kept. */
function treeOf(session) {
  const { root, kind } = session;
  const children = [...root.children].filter(([name]) => kind === "full" || name.startsWith(NOT_RUNNING) === (kind === "off_cpu"));
  const value = kind === "full" ? root.value : kind === "off_cpu" ? resting(session) : running(session);
  return { name: "all", value, children: new Map(children) };
}

/** Frames to draw, from the root down; those above the zoomed one are as wide as it. */
function frames(tree, zoom, query) {
  const path = [tree];
  for (const name of zoom) {
    const next = path.at(-1).children.get(name);
    if (!next) break;
    path.push(next);
  }
  const whole = path.at(-1);
  const names = path.slice(1).map((one) => one.name);
  const found = (name) => query !== "" && name.toLowerCase().includes(query);
  const made = path.slice(0, -1).map((one, depth) => ({ one, depth, left: 0, width: 1, path: names.slice(0, depth), above: true }));
  let row = [{ one: whole, depth: path.length - 1, left: 0, width: 1, path: names }];
  while (row.length && made.length < FRAMES_MAX) {
    made.push(...row);
    row = row.flatMap(({ one, depth, left, path: above }) => {
      let at = left;
      return [...one.children.values()].sort((a, b) => b.value - a.value).map((child) => {
        const width = child.value / whole.value;
        at += width;
        return { one: child, depth: depth + 1, left: at - width, width, path: [...above, child.name] };
      }).filter(({ width }) => width >= SHARE_MIN);
    });
  }
  for (const frame of made) frame.found = found(frame.one.name);
  return { made: made.slice(0, FRAMES_MAX), height: ROW_PX * Math.max(...made.map(({ depth }) => depth + 1)), zoomed: names };
}

/** Samples whose stacks have a frame that is searched for, each once. */
function matched(one, query) {
  if (one.name.toLowerCase().includes(query)) return one.value;
  let sum = 0;
  for (const child of one.children.values()) sum += matched(child, query);
  return sum;
}

/** [name, samples in which it was the innermost frame], most first. */
function hottest(tree) {
  const own = new Map();
  const visit = (one) => {
    let rest = one.value;
    for (const child of one.children.values()) { rest -= child.value; visit(child); }
    if (rest > 0) own.set(one.name, (own.get(one.name) || 0) + rest);
  };
  for (const child of tree.children.values()) visit(child);
  return [...own].sort((a, b) => b[1] - a[1]).slice(0, LINES);
}

const share = (part, all) => `${(all ? (100 * part) / all : 0).toFixed(1)} %`;
const kindOf = (name) => (name.startsWith(NOT_RUNNING) ? "resting" : name.startsWith("engine.") ? "engine" : "user");

function redraw(session) {
  const place = document.getElementById("flamegraph");
  if (session === shown && place) morphChildren(place, h("div", null, drawing(session)));
}

function drawing(session) {
  const problem = session.error ? h("p", { class: "flame-problem" }, session.error) : null;
  const looks = session.root.value;
  if (!looks) {
    if (!session.running) return empty("Nothing is sampled", "No subtask is running that could be looked at.");
    return problem || (session.looked ? empty("Nothing was sampled", "The subtasks ended or moved while they were looked at.") : h("p", { class: "loading" }, "Sampling…"));
  }
  const tree = treeOf(session);
  const state = session.running ? "more are being gathered" : "no subtask is running any more";
  const facts = h("p", { class: "dim", id: "flame-facts" }, `${count(looks)} samples in ${duration(session.looked)} of looking, their code was running in ${share(running(session), looks)}; ${state}.`);
  if (!tree.value) {
    return [problem, facts, session.kind === "on_cpu"
      ? empty("No code was running", "In none of the samples: the subtasks are idle or backpressured, or others of their slots have their turn. “Off-CPU” and “Mixed” show these samples.")
      : empty("Code was always running", "In all of the samples: see “On-CPU”.")];
  }
  const query = session.query.trim().toLowerCase();
  const { made, height, zoomed } = frames(tree, session.zoom, query);
  const frameAt = (event) => { const hit = event.target.closest(".frame"); return hit ? made[Number(hit.dataset.frame)] : null; };
  const say = (text) => { session.note = text; document.getElementById("flame-note").textContent = text || " "; };
  return [problem, facts,
    h("div", {
      class: "flames", style: { height: `${height}px` },
      onclick: (event) => { const frame = frameAt(event); if (frame) { session.zoom = frame.path; redraw(session); } },
      onmouseover: (event) => { const frame = frameAt(event); say(frame ? said(frame.one, tree) : ""); },
      onmouseleave: () => say(""),
    }, made.map((frame, index) => h("div", {
      class: `frame ${frame.depth ? kindOf(frame.one.name) : "root"}${frame.found ? " found" : ""}${frame.above ? " above" : ""}`, "data-frame": index, title: said(frame.one, tree),
      style: { left: `${frame.left * 100}%`, width: `${frame.width * 100}%`, top: `${frame.depth * ROW_PX}px` },
    }, frame.one.name))),
    h("p", { id: "flame-note", class: "flame-note" }, session.note || " "),
    h("div", { class: "legend" }, [["user", "user code and libraries"], ["engine", "engine"], ["resting", "not running"]].map(([name, text]) => h("span", null, h("i", { class: name }), text)),
      query ? h("span", { id: "flame-found" }, h("i", { class: "found" }), `“${session.query.trim()}”: ${share(matched(tree, query), tree.value)} of the samples`) : null,
      zoomed.length ? h("button", { type: "button", id: "flame-whole", onclick: () => { session.zoom = []; redraw(session); } }, "Whole graph") : null),
    h("h3", null, "Hottest lines"),
    table([
      { title: "Line", class: "key wrap", cell: ([name]) => name },
      { title: "Samples", class: "number", cell: ([, samples]) => count(samples) },
      { title: "Share", class: "number", cell: ([, samples]) => share(samples, tree.value) },
    ], hottest(tree), { key: ([name]) => name })];
}

const said = (one, tree) => `${one.name}: ${share(one.value, tree.value)} (${count(one.value)} of ${count(tree.value)} samples)`;

/** base: the address of the vertex's page. */
export function flameGraph(session, vertex, base, kind, subtask) {
  const at = (kindWanted, subtaskWanted) => `${base}/flamegraph/${kindWanted}${subtaskWanted === "" ? "" : `/${subtaskWanted}`}`;
  return h("div", null,
    h("div", { class: "flame-head" },
      h("span", { class: "choice", role: "group", "aria-label": "Type" }, KINDS.map(([name, title]) => h("a", { class: `button${name === kind ? " current" : ""}`, href: at(name, subtask), "aria-current": name === kind ? "true" : null }, title))),
      h("label", null, "Subtask ", h("select", { id: "flame-subtask", onchange: (event) => { location.hash = at(kind, event.target.value); } },
        h("option", { value: "", selected: subtask === "" }, "All"),
        vertex.subtasks.map((one) => h("option", { value: one.subtask, selected: String(one.subtask) === subtask }, String(one.subtask))))),
      h("input", { id: "flame-search", type: "search", placeholder: "Search functions", "aria-label": "Search functions", value: session.query, oninput: (event) => { session.query = event.target.value; redraw(session); } })),
    h("div", { id: "flamegraph" }, drawing(session)));
}
