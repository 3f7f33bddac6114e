// The first page: how full the cluster is, which jobs run, which have ended.

import { getJson } from "./api.js";
import { h } from "./dom.js";
import { count, duration, time } from "./format.js";
import { badge, bar, empty, table, taskCounts, tile } from "./parts.js";

const ENDED = new Set(["FINISHED", "CANCELED", "FAILED"]);

const COLUMNS = [
  { title: "Job", class: "name", cell: (row) => h("a", { href: `#/job/${row.jid}` }, row.name) },
  { title: "State", cell: (row) => badge(row.state) },
  { title: "Tasks", cell: (row) => taskCounts(row.tasks) },
  { title: "Type", cell: (row) => row.jobType.toLowerCase() },
  { title: "Started", class: "number", cell: (row) => time(row["start-time"]) },
  { title: "Duration", class: "number", cell: (row) => duration(row.duration) },
  { title: "Id", class: "id", cell: (row) => row.jid },
];

export const page = {
  async load(_, signal) {
    const [cluster, jobs] = await Promise.all([getJson("overview", signal), getJson("jobs/overview", signal)]);
    return { cluster, jobs: jobs.jobs };
  },

  render({ cluster, jobs }) {
    const byStart = (a, b) => b["start-time"] - a["start-time"];
    const live = jobs.filter((job) => !ENDED.has(job.state)).sort(byStart);
    const ended = jobs.filter((job) => ENDED.has(job.state)).sort((a, b) => b["end-time"] - a["end-time"]);
    const total = cluster["slots-total"];
    const used = total - cluster["slots-available"];
    const options = { key: (row) => row.jid, link: (row) => `#/job/${row.jid}` };
    return h("div", { class: "stack" },
      h("div", { class: "tiles" },
        tile("Free slots", `${count(cluster["slots-available"])} of ${count(total)}`, total ? `${count(used)} in use` : "no TaskManager has registered",
          bar([[total ? used / total : 0, "used"]], `${used} of ${total} slots in use`)),
        tile("TaskManagers", h("a", { href: "#/taskmanagers" }, count(cluster.taskmanagers)), "registered"),
        tile("Running jobs", count(cluster["jobs-running"]), "created, running or ending"),
        tile("Ended jobs", count(cluster["jobs-finished"] + cluster["jobs-cancelled"] + cluster["jobs-failed"]),
          h("span", null, h("b", { class: "state-finished" }, cluster["jobs-finished"]), " finished  ",
            h("b", { class: "state-canceled" }, cluster["jobs-cancelled"]), " canceled  ", h("b", { class: "state-failed" }, cluster["jobs-failed"]), " failed"))),
      h("section", { class: "card jobs", id: "running" }, h("h2", null, "Running jobs"),
        table(COLUMNS, live, { ...options, none: empty("No job is running", "Start one with “flink run”, or on the page “Submit program”.") })),
      h("section", { class: "card jobs", id: "completed" }, h("h2", null, "Completed jobs"),
        table(COLUMNS, ended, { ...options, none: empty("No job has ended yet") })));
  },
};
