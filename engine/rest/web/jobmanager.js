// The JobManager: configuration, environment and logs.

import { getJson, quoted } from "./api.js";
import { h } from "./dom.js";
import { time } from "./format.js";
import { loadText, logList, logText } from "./logs.js";
import { empty, facts, keyValues, table, tabs } from "./parts.js";

const TAIL = "?tail=524288";

const leaderList = (rows) => table([
  { title: "Since", cell: (row) => time(row.since) },
  { title: "Until", cell: (row) => row.until < 0 ? "leads now" : time(row.until) },
  { title: "Address", cell: (row) => row.address },
  { title: "Container", cell: (row) => row.log ? h("a", { href: row.log }, row.container) : row.container },
  { title: "Why it ended", class: "wrap", cell: (row) => row.reason },
], rows, { key: (row) => String(row.since), none: empty("No other JobManagers", "Without high availability there is one JobManager, and nothing is kept of those before it.") });

export const page = {
  once: () => true,

  async load({ tab = "config", file }, signal) {
    if (tab === "log" || tab === "stdout") return { log: await loadText(`jobmanager/${tab}${TAIL}`, signal) };
    if (tab === "logs" && file) return { log: await loadText(`jobmanager/logs/${quoted(file)}${TAIL}`, signal) };
    if (tab === "logs") return getJson("jobmanager/logs", signal);
    if (tab === "leaders") return getJson("jobmanager/leaders", signal);
    const [config, environment] = await Promise.all([getJson("jobmanager/config", signal), getJson("jobmanager/environment", signal)]);
    return { config, environment };
  },

  render({ config, environment, log, logs, leaders }, { tab = "config", file }, context) {
    const base = "#/jobmanager";
    return h("section", { class: "card" }, h("h2", null, "JobManager"),
      tabs([["config", base, "Configuration"], ["log", `${base}/log`, "Log"], ["stdout", `${base}/stdout`, "Standard output"], ["logs", `${base}/logs`, "Log files"], ["leaders", `${base}/leaders`, "Leaders"]], tab),
      config ? h("div", { class: "stack" }, facts([["Interpreter", environment.jvm.version], ["Platform", environment.jvm.arch]]),
        keyValues(config, empty("Everything is at its default"))) : null,
      leaders ? leaderList(leaders) : null,
      logs ? logList(logs, `${base}/logs`) : null,
      log ? logText(log, file || (tab === "log" ? "Main log" : "Standard output"), context) : null);
  },
};
