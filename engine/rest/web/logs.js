// Log files: the list of a process, and the end of one file. Read once; the button reads again.

import { getText, url } from "./api.js";
import { h } from "./dom.js";
import { bytes, time } from "./format.js";
import { empty, table } from "./parts.js";

const SHOWN_CHARACTERS_MAX = 512 * 1024;

export async function loadText(path, signal) {
  try {
    return { path, text: await getText(path, signal) };
  } catch (error) {
    if (error.status !== 404) throw error;
    return { path, missing: error.message };
  }
}

export function logText({ path, text, missing }, title, context) {
  if (missing) return empty("No such log", missing);
  const cut = text.length > SHOWN_CHARACTERS_MAX;
  return h("div", null,
    h("div", { class: "title" }, h("h3", null, title), h("span", { class: "grow" }),
      h("button", { type: "button", onclick: () => context.refresh() }, "Read again"), h("a", { class: "button", href: url(path.split("?")[0]), download: "" }, "Download")),
    cut ? h("p", { class: "dim" }, `The last ${bytes(SHOWN_CHARACTERS_MAX)} are shown.`) : null,
    text ? h("pre", { class: "log", tabindex: "0" }, cut ? text.slice(-SHOWN_CHARACTERS_MAX) : text) : empty("The file is empty"));
}

export const logList = (logs, base) => table([
  { title: "File", class: "name", cell: (row) => h("a", { href: `${base}/${encodeURIComponent(row.name)}` }, row.name) },
  { title: "Size", class: "number", cell: (row) => bytes(row.size) },
  { title: "Last change", class: "number", cell: (row) => time(row.mtime) },
], logs, { key: (row) => row.name, none: empty("There are no log files", "A local run writes its log to the terminal.") });
