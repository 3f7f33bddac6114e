// TaskManagers: the list, and one of them with memory, slots and logs.

import { getJson, quoted } from "./api.js";
import { h } from "./dom.js";
import { bytes, count, duration, percent } from "./format.js";
import { loadText, logList, logText } from "./logs.js";
import { bar, empty, facts, table, tabs, tile } from "./parts.js";

const ago = (at) => `${duration(Math.max(0, Date.now() - at))} ago`;

export const list = {
  load: (_, signal) => getJson("taskmanagers", signal),
  render: ({ taskmanagers }) => h("section", { class: "card" }, h("h2", null, "TaskManagers"), table([
    { title: "TaskManager", class: "name", cell: (row) => h("a", { href: `#/taskmanager/${quoted(row.id)}` }, row.id) },
    { title: "Data port", class: "number", cell: (row) => row.dataPort },
    { title: "Slots", class: "load", cell: (row) => slots(row) },
    { title: "Free slots", class: "number", cell: (row) => `${count(row.freeSlots)} of ${count(row.slotsNumber)}` },
    { title: "Tasks", class: "number", cell: (row) => count(row.assignedTasks) },
    { title: "CPU cores", class: "number", cell: (row) => row.hardware.cpuCores },
    { title: "Process memory", class: "number", cell: (row) => bytes(row.memoryConfiguration.totalProcessMemory) },
    { title: "Host memory", class: "number", cell: (row) => bytes(row.hardware.physicalMemory) },
    { title: "Heartbeat", class: "number", cell: (row) => ago(row.timeSinceLastHeartbeat) },
  ], taskmanagers, {
    key: (row) => row.id, link: (row) => `#/taskmanager/${quoted(row.id)}`,
    none: empty("No TaskManager has registered", "Start one with taskmanager.sh; on YARN they come when a job asks for slots."),
  })),
};

const slots = (row) => bar([[row.slotsNumber ? 1 - row.freeSlots / row.slotsNumber : 0, "used"]], `${row.slotsNumber - row.freeSlots} of ${row.slotsNumber} slots in use`);

export const page = {
  once: ({ tab }) => tab === "log" || tab === "stdout" || tab === "logs",

  async load({ id, tab, file }, signal) {
    const base = `taskmanagers/${quoted(id)}`;
    const data = { view: await getJson(base, signal) };
    if (tab === "log" || tab === "stdout") data.log = await loadText(`${base}/${tab}`, signal);
    if (tab === "logs" && file) data.log = await loadText(`${base}/logs/${quoted(file)}`, signal);
    if (tab === "logs" && !file) data.logs = (await getJson(`${base}/logs`, signal)).logs;
    return data;
  },

  render({ view, log, logs }, { id, tab = "overview", file }, context) {
    const base = `#/taskmanager/${quoted(id)}`;
    return h("div", { class: "stack" },
      h("section", { class: "card head-card", "data-key": "head" }, h("div", { class: "title" }, h("h1", null, view.id)),
        facts([["Address", view.path], ["Data port", view.dataPort], ["CPU cores", view.hardware.cpuCores], ["Host memory", bytes(view.hardware.physicalMemory)], ["Last heartbeat", ago(view.timeSinceLastHeartbeat)]])),
      tab === "overview" ? memoryTiles(view) : null,
      h("section", { class: "card", "data-key": "tabs" },
        tabs([["overview", base, "Slots"], ["log", `${base}/log`, "Log"], ["stdout", `${base}/stdout`, "Standard output"], ["logs", `${base}/logs`, "Log files"]], tab),
        tab === "overview" ? slotTable(view) : null,
        logs ? logList(logs, `${base}/logs`) : null,
        log ? logText(log, file || (tab === "log" ? "Main log" : "Standard output"), context) : null));
  },
};

function memoryTiles(view) {
  const { heapUsed, heapMax } = view.metrics;
  const used = heapMax ? heapUsed / heapMax : 0;
  return h("div", { class: "tiles", "data-key": "memory" },
    tile("Memory in use", bytes(heapUsed), `${percent(used)} of ${bytes(heapMax)}`, bar([[used, used > 0.9 ? "backpressured" : "used"]])),
    tile("For tasks", bytes(view.memoryConfiguration.taskHeap), `${bytes(view.memoryConfiguration.taskHeap / Math.max(1, view.slotsNumber))} a slot`),
    tile("Slots", `${view.freeSlots} of ${view.slotsNumber}`, "free", slots(view)),
    tile("Tasks", count(view.assignedTasks), "running here"));
}

const slotTable = (view) => table([
  { title: "Slot", class: "number", cell: (row) => row.index },
  { title: "Job", class: "id", cell: (row) => h("a", { href: `#/job/${row.jobId}` }, row.jobId) },
  { title: "Tasks", class: "number", cell: (row) => row.assignedTasks },
  { title: "CPU cores", class: "number", cell: (row) => row.resource.cpuCores },
  { title: "Memory", class: "number", cell: (row) => `${count(row.resource.taskHeapMemory)} MB` },
], view.allocatedSlots.map((slot, index) => ({ ...slot, index })), { key: (row) => String(row.index), none: empty("All slots are free", `${view.slotsNumber} slots wait for a job.`) });
