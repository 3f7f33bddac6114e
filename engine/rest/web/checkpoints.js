// The checkpoints of one job: counts, the last ones, the settings, the history.

import { h } from "./dom.js";
import { bytes, duration, time } from "./format.js";
import { badge, empty, facts, table } from "./parts.js";

const NEVER = 2 ** 62; // what stands for "no periodic checkpoints"

export function checkpoints({ checkpoints: answer, checkpointConfig: config }) {
  if (!answer) return empty("No checkpoints", "A batch job takes none.");
  const { counts, latest, history } = answer;
  const of = (row) => (row ? `${row.id} at ${time(row.trigger_timestamp)}, ${duration(row.end_to_end_duration)}, ${bytes(row.state_size)}` : "none");
  return h("div", { class: "stack" },
    facts([["Completed", counts.completed], ["Failed", counts.failed], ["In progress", counts.in_progress], ["Restored", counts.restored]]),
    facts([
      ["Latest completed", of(latest.completed)], ["Latest savepoint", of(latest.savepoint)],
      ["Latest failed", latest.failed ? `${latest.failed.id} at ${time(latest.failed.failure_timestamp)}: ${latest.failed.failure_message}` : "none"],
      ["Restored from", latest.restored ? `${latest.restored.id} at ${time(latest.restored.restore_timestamp)} ${latest.restored.external_path}` : "nothing"],
    ]),
    config ? facts([
      ["Interval", config.interval > NEVER ? "none" : duration(config.interval)], ["Mode", config.mode.replaceAll("_", " ")],
      ["Timeout", duration(config.timeout)], ["Unaligned", config.unaligned_checkpoints ? "yes" : "no"],
      ["Backend", config.state_backend], ["Storage", config.checkpoint_storage],
    ]) : null,
    table([
      { title: "Id", class: "number", cell: (row) => row.id },
      { title: "State", cell: (row) => badge(row.status) },
      { title: "Type", cell: (row) => row.checkpoint_type.toLowerCase().replaceAll("_", " ") },
      { title: "Acknowledged", class: "number", cell: (row) => `${row.num_acknowledged_subtasks}/${row.num_subtasks}` },
      { title: "Triggered", class: "number", cell: (row) => time(row.trigger_timestamp) },
      { title: "Duration", class: "number", cell: (row) => duration(row.end_to_end_duration) },
      { title: "Written", class: "number", cell: (row) => bytes(row.checkpointed_size) },
      { title: "Full size", class: "number", cell: (row) => bytes(row.state_size) },
      { title: "Path or failure", class: "wrap", cell: (row) => row.failure_message || row.external_path || "" },
    ], history, { key: (row) => String(row.id), none: empty("No checkpoint yet") }));
}
