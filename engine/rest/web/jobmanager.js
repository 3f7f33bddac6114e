// The JobManager: configuration, environment and logs.

import { getJson, quoted } from "./api.js";
import { h } from "./dom.js";
import { loadText, logList, logText } from "./logs.js";
import { empty, facts, keyValues, tabs } from "./parts.js";

const TAIL = "?tail=524288";

export const page = {
  once: () => true,

  async load({ tab = "config", file }, signal) {
    if (tab === "log" || tab === "stdout") return { log: await loadText(`jobmanager/${tab}${TAIL}`, signal) };
    if (tab === "logs" && file) return { log: await loadText(`jobmanager/logs/${quoted(file)}${TAIL}`, signal) };
    if (tab === "logs") return getJson("jobmanager/logs", signal);
    const [config, environment] = await Promise.all([getJson("jobmanager/config", signal), getJson("jobmanager/environment", signal)]);
    return { config, environment };
  },

  render({ config, environment, log, logs }, { tab = "config", file }, context) {
    const base = "#/jobmanager";
    return h("section", { class: "card" }, h("h2", null, "JobManager"),
      tabs([["config", base, "Configuration"], ["log", `${base}/log`, "Log"], ["stdout", `${base}/stdout`, "Standard output"], ["logs", `${base}/logs`, "Log files"]], tab),
      config ? h("div", { class: "stack" }, facts([["Interpreter", environment.jvm.version], ["Platform", environment.jvm.arch]]),
        keyValues(config, empty("Everything is at its default"))) : null,
      logs ? logList(logs, `${base}/logs`) : null,
      log ? logText(log, file || (tab === "log" ? "Main log" : "Standard output"), context) : null);
  },
};
