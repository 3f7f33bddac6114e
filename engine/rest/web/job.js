// One job: header with cancel, drawn dataflow, vertices and their subtasks, timeline, exceptions, configuration.

import { getJson, quoted } from "./api.js";
import { checkpoints } from "./checkpoints.js";
import { h } from "./dom.js";
import { KINDS, flameGraph, gather } from "./flamegraph.js";
import { bytes, count, duration, percent, short, time } from "./format.js";
import { graph, plainText } from "./graph.js";
import { badge, bar, confirmed, empty, facts, keyValues, table, tabs, taskCounts } from "./parts.js";
import { timeline } from "./timeline.js";

const ENDED = new Set(["FINISHED", "CANCELED", "FAILED"]);
const TIMELINE_SUBTASKS_MAX = 400;
const VERTICES_REMEMBERED_MAX = 2000;
const former = new Map(); // vertex of a job → its last {now, metrics}: rates are differences

/** Shares of time and records per second since the last look; over the whole run at the first look and at the end. */
function ratesOf(job, vertex) {
  const key = job.jid + vertex.id;
  if (former.size > VERTICES_REMEMBERED_MAX) former.clear();
  const seen = former.get(key);
  const metrics = vertex.metrics;
  const ended = ENDED.has(job.state);
  if (!seen || (job.now - seen.now > 500 && !ended)) former.set(key, { now: job.now, metrics, rates: null });
  if (seen && seen.rates && job.now - seen.now <= 500) return seen.rates;
  const base = seen && !ended ? seen.metrics : null;
  const since = (name) => Math.max(0, Number(metrics[name]) - (base ? Number(base[name]) : 0)) || 0;
  const busy = since("accumulated-busy-time");
  const backpressured = since("accumulated-backpressured-time");
  const idle = since("accumulated-idle-time");
  const all = busy + backpressured + idle;
  const seconds = Math.max(0.001, (base ? job.now - seen.now : vertex.duration) / 1000);
  const rates = {
    busy: all ? busy / all : 0, backpressured: all ? backpressured / all : 0, idle: all ? idle / all : 1,
    in: since("read-records") / seconds, out: since("write-records") / seconds,
  };
  const kept = former.get(key);
  if (kept) kept.rates = rates;
  return rates;
}

export const page = {
  async load({ jid, tab, detail, view, kind, subtask = "" }, signal) {
    const job = await getJson(`jobs/${jid}`, signal);
    for (const vertex of job.vertices) vertex.rates = ratesOf(job, vertex);
    const data = { job };
    const ask = (path) => getJson(`jobs/${jid}/${path}`, signal);
    const waits = [ask("exceptions?maxExceptions=16").then((answer) => { data.exceptions = answer.exceptionHistory; })];
    if (job.vertices.some((vertex) => vertex.tasks.SCHEDULED)) waits.push(getJson("overview", signal).then((answer) => { data.cluster = answer; }));
    if (tab === "vertex" && job.vertices.some((vertex) => vertex.id === detail)) {
      waits.push(ask(`vertices/${detail}`).then((answer) => { data.vertex = answer; }));
      if (view !== "flamegraph") {
        waits.push(ask(`vertices/${detail}/operators`).then((answer) => { data.operators = answer.operators; }));
        waits.push(ask(`vertices/${detail}/accumulators`).then((answer) => { data.accumulators = answer["user-accumulators"]; }));
      }
    }
    if (tab === "timeline" && job.vertices.reduce((sum, vertex) => sum + vertex.parallelism, 0) <= TIMELINE_SUBTASKS_MAX) {
      waits.push(Promise.all(job.vertices.map((vertex) => ask(`vertices/${vertex.id}/subtasktimes`))).then((answer) => { data.times = answer; }));
    }
    if (tab === "checkpoints" && job["job-type"] !== "BATCH") {
      waits.push(ask("checkpoints").then((answer) => { data.checkpoints = answer; }));
      waits.push(ask("checkpoints/config").then((answer) => { data.checkpointConfig = answer; }));
    }
    if (tab === "config") {
      waits.push(ask("config").then((answer) => { data.config = answer; }));
      waits.push(ask("accumulators").then((answer) => { data.accumulators = answer["user-task-accumulators"]; }));
    }
    await Promise.all(waits);
    if (data.vertex && view === "flamegraph") {
      const looked = data.vertex.subtasks.filter((one) => one.status === "RUNNING" && (subtask === "" || String(one.subtask) === subtask));
      data.flames = gather(jid, detail, kindOf(kind), subtask, looked.length);
    }
    return data;
  },

  render(data, { jid, tab = "vertices", detail = "", kind, subtask = "" }, context) {
    const { job, exceptions } = data;
    const base = `#/job/${jid}`;
    const vertices = new Map(job.vertices.map((vertex) => [vertex.id, vertex]));
    const number = exceptions.entries.length;
    const failing = ["FAILED", "FAILING", "RESTARTING"].includes(job.state);
    const failure = failing && tab !== "exceptions" ? exceptions.entries[0] : null;
    return h("div", { class: "stack" },
      header(job, context),
      data.cluster ? slotsMissing(job, data.cluster) : null,
      failure ? h("section", { class: "card failure", "data-key": "failure" }, h("h2", null, `${failure.exceptionName}${failure.taskName ? ` in ${failure.taskName}` : ""}`), h("pre", null, firstLines(failure.stacktrace, 8)), h("a", { href: `${base}/exceptions` }, "All of it")) : null,
      h("section", { class: "card", "data-key": "graph" }, job.plan.nodes.length
        ? graph(job.plan, { vertices, link: (id) => (detail === id ? base : `${base}/vertex/${id}`), selected: detail }) : empty("The plan is empty")),
      h("section", { class: "card", "data-key": "tabs" },
        tabs([["vertices", base, "Vertices"], ["timeline", `${base}/timeline`, "Timeline"], ...(job["job-type"] === "BATCH" ? [] : [["checkpoints", `${base}/checkpoints`, "Checkpoints"]]), ["exceptions", `${base}/exceptions`, number ? `Exceptions (${number}${exceptions.truncated ? "+" : ""})` : "Exceptions"], ["config", `${base}/config`, "Configuration"]], tab === "vertex" ? "vertices" : tab),
        content(data, base, tab, detail, kindOf(kind), subtask)));
  },
};

const kindOf = (kind) => (KINDS.some(([name]) => name === kind) ? kind : KINDS[0][0]);

const firstLines = (text, limit) => { const lines = text.split("\n"); return lines.length > limit ? [...lines.slice(0, limit), "…"].join("\n") : text; };

function header(job, context) {
  const live = !ENDED.has(job.state);
  const cancel = async () => {
    if (!await confirmed("Cancel this job?", `“${job.name}” stops; what it has not written yet is lost.`, "Cancel job")) return;
    // GET, because proxies such as YARN's pass nothing else.
    try { await getJson(`jobs/${job.jid}/yarn-cancel`); } catch (error) { alert(error.message); }
    context.refresh();
  };
  return h("section", { class: "card head-card", "data-key": "head" },
    h("div", { class: "title" }, h("h1", null, job.name), badge(job.state), h("span", { class: "grow" }),
      live && context.config.features["web-cancel"] ? h("button", { type: "button", class: "danger", id: "cancel", disabled: job.state === "CANCELLING", onclick: cancel }, job.state === "CANCELLING" ? "Cancelling…" : "Cancel job") : null),
    facts([["Id", h("code", null, job.jid)], ["Type", job["job-type"].toLowerCase()], ["Started", time(job["start-time"])], ["Ended", job["end-time"] > 0 ? time(job["end-time"]) : null], ["Duration", duration(job.duration)], ["Tasks", taskCounts(totals(job.vertices))]]));
}

/** Why scheduled tasks do not start, where it is for want of slots. */
function slotsMissing(job, cluster) {
  const total = cluster["slots-total"];
  const wanted = Math.max(...job.vertices.map((vertex) => vertex.parallelism));
  if (cluster["slots-available"] > 0 && total >= wanted) return null;
  const have = total === 1 ? "1 slot" : `${count(total)} slots`;
  return h("section", { class: "card", id: "waiting", "data-key": "waiting" }, h("h2", null, "Waiting for slots"),
    h("p", null, `${count(totals(job.vertices).SCHEDULED)} tasks wait; the cluster has ${have}, ${count(cluster["slots-available"])} free, and a parallelism of ${count(wanted)} needs at least ${count(wanted)}. More TaskManagers, fewer other jobs or a lower parallelism let it start.`));
}

function totals(vertices) {
  const sums = {};
  for (const vertex of vertices) for (const [state, number] of Object.entries(vertex.tasks)) sums[state] = (sums[state] || 0) + number;
  return sums;
}

function content(data, base, tab, detail, kind, subtask) {
  const { job } = data;
  switch (tab) {
    case "timeline": return data.times ? timeline(job, data.times) : empty("Too many subtasks to draw", "Choose a vertex to see its subtasks.");
    case "checkpoints": return checkpoints(data);
    case "exceptions": return exceptionList(data.exceptions);
    case "config": return configuration(data);
    default: return h("div", null, vertexTable(job, base, detail), data.vertex ? vertexDetail(data, `${base}/vertex/${detail}`, kind, subtask) : null);
  }
}

function vertexTable(job, base, detail) {
  return table([
    { title: "Vertex", class: "name", cell: (row) => h("a", { href: `${base}/vertex/${row.id}` }, plainText(row.name)) },
    { title: "State", cell: (row) => badge(row.status) },
    { title: "Tasks", cell: (row) => taskCounts(row.tasks) },
    { title: "Records in", class: "number", cell: (row) => withRate(row.metrics["read-records"], row.rates.in, job) },
    { title: "Records out", class: "number", cell: (row) => withRate(row.metrics["write-records"], row.rates.out, job) },
    { title: "Bytes in", class: "number", cell: (row) => bytes(row.metrics["read-bytes"]) },
    { title: "Bytes out", class: "number", cell: (row) => bytes(row.metrics["write-bytes"]) },
    { title: "Load", class: "load", cell: (row) => h("div", { title: `busy ${percent(row.rates.busy)}, backpressured ${percent(row.rates.backpressured)}` }, bar([[row.rates.busy, "busy"], [row.rates.backpressured, "backpressured"]])) },
    { title: "Duration", class: "number", cell: (row) => duration(row.duration) },
  ], job.vertices, {
    key: (row) => row.id, link: (row) => (detail === row.id ? base : `${base}/vertex/${row.id}`), selected: (row) => row.id === detail,
    none: empty("The job has no vertices"),
  });
}

const withRate = (total, rate, job) => [count(total), ENDED.has(job.state) ? null : h("small", null, `${short(rate)}/s`)];

/** What each operator of the chain did, in all subtasks together, and how it is run: on columns, compiled, or why not. */
const operatorTable = (rows) => table([
  { title: "Operator", class: "key", cell: (row) => row.name },
  { title: "Records out", class: "number", cell: (row) => count(row["records-out"]) },
  { title: "Batches", class: "number", cell: (row) => count(row["batches-out"]) },
  { title: "A batch", class: "number", cell: (row) => count(Math.round(row["batch-size"])) },
  { title: "Busy", class: "number", cell: (row) => (row["fused-with"] ? `with ${row["fused-with"]}` : duration(row["busy-time"])) },
  { title: "Runs", class: "wrap", cell: (row) => row.tier },
], rows, { key: (row) => row.name });

function vertexDetail(data, base, kind, subtask) {
  const { vertex, flames } = data;
  return h("div", { class: "detail", "data-key": vertex.id },
    tabs([["subtasks", base, "Subtasks"], ["flamegraph", `${base}/flamegraph`, "FlameGraph"]], flames ? "flamegraph" : "subtasks"),
    flames ? flameGraph(flames, vertex, base, kind, subtask) : subtasks(data));
}

function subtasks({ vertex, operators, accumulators }) {
  return h("div", null,
    operators && operators.length ? [h("h3", null, `Operators of ${plainText(vertex.name)}`), operatorTable(operators)] : null,
    h("h3", null, `Subtasks of ${plainText(vertex.name)}`),
    table([
      { title: "Subtask", class: "number", cell: (row) => row.subtask },
      { title: "Attempt", class: "number", cell: (row) => row.attempt + 1 },
      { title: "State", cell: (row) => badge(row.status) },
      { title: "TaskManager", cell: (row) => (row["taskmanager-id"] === "(unassigned)" ? "–" : h("a", { href: `#/taskmanager/${encodeURIComponent(row["taskmanager-id"])}` }, row.endpoint)) },
      { title: "Records in", class: "number", cell: (row) => count(row.metrics["read-records"]) },
      { title: "Records out", class: "number", cell: (row) => count(row.metrics["write-records"]) },
      { title: "Bytes in", class: "number", cell: (row) => bytes(row.metrics["read-bytes"]) },
      { title: "Bytes out", class: "number", cell: (row) => bytes(row.metrics["write-bytes"]) },
      { title: "Started", class: "number", cell: (row) => time(row["start-time"]) },
      { title: "Duration", class: "number", cell: (row) => duration(row.duration) },
    ], vertex.subtasks, { key: (row) => String(row.subtask) }),
    accumulators && accumulators.length ? [h("h3", null, "Accumulators"), accumulatorTable(accumulators)] : null);
}

const accumulatorTable = (rows) => table([
  { title: "Name", class: "key", cell: (row) => row.name }, { title: "Type", cell: (row) => row.type }, { title: "Value", class: "wrap", cell: (row) => row.value },
], rows, { key: (row) => row.name, none: empty("The job has no accumulators") });

function exceptionList(history) {
  if (!history.entries.length) return empty("No exceptions", "Nothing has failed in this job.");
  return h("div", { class: "exceptions" }, history.entries.map((entry, index) => h("article", { "data-key": `${entry.timestamp}-${index}` },
    h("h3", null, entry.exceptionName, h("span", { class: "dim" }, ` ${time(entry.timestamp)}`)),
    entry.taskName ? h("p", { class: "dim" }, `${entry.taskName}${entry.endpoint ? ` on ${entry.endpoint}` : ""}`) : null,
    entry.taskManagerId ? h("p", { class: "dim" }, `${entry.failureLabels.container ? "Container" : "TaskManager"} ${entry.taskManagerId} · `, h("a", { href: entry.failureLabels.log || `#/taskmanager/${quoted(entry.taskManagerId)}/log` }, "Log"),
      entry.failureLabels.command ? [" · when the application has ended: ", h("code", null, entry.failureLabels.command)] : null) : null,
    h("pre", null, entry.stacktrace))));
}

function configuration({ job, config, accumulators }) {
  const execution = config["execution-config"];
  const user = Object.entries(execution["user-config"]).map(([key, value]) => ({ key, value }));
  return h("div", { class: "stack" },
    facts([["Parallelism", execution["job-parallelism"]], ["Max parallelism", job.maxParallelism], ["Restart strategy", execution["restart-strategy"]], ["Object reuse", execution["object-reuse-mode"] ? "on" : "off"]]),
    h("div", null, h("h3", null, "Job parameters"), keyValues(user, empty("The program set no parameters"))),
    h("div", null, h("h3", null, "Accumulators"), accumulatorTable(accumulators)));
}
