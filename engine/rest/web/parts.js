// Pieces that several pages share: badges, tables, tiles, tabs, empty states, dialogs.

import { h } from "./dom.js";

export const badge = (state) => h("span", { class: `badge state-${state.toLowerCase()}` }, h("i"), state);

export const empty = (title, text) => h("div", { class: "empty" }, h("strong", null, title), text ? h("p", null, text) : null);

/** columns: [{title, class, cell: row → node or text}]; rows that have `link` go there when clicked. */
export function table(columns, rows, { key, link, selected, onselect, none } = {}) {
  if (!rows.length) return none || empty("Nothing here");
  return h("div", { class: "scroll" }, h("table", null,
    h("thead", null, h("tr", null, columns.map((column) => h("th", { class: column.class }, column.title)))),
    h("tbody", null, rows.map((row) => h("tr", {
      "data-key": key ? key(row) : null,
      class: [link || onselect ? "clickable" : "", selected && selected(row) ? "selected" : ""].join(" ").trim() || null,
      onclick: link || onselect ? (event) => {
        if (event.target.closest("a, button, input") || String(getSelection())) return;
        if (link) location.hash = link(row); else onselect(row);
      } : null,
    }, columns.map((column) => h("td", { class: column.class }, column.cell(row))))))));
}

export const tile = (title, value, note, extra) => h("section", { class: "card tile" },
  h("h3", null, title), h("div", { class: "value" }, value), note ? h("div", { class: "note" }, note) : null, extra);

/** entries: [[name, hash, title]] */
export const tabs = (entries, current) => h("nav", { class: "tabs" }, entries.map(([name, hash, title]) =>
  h("a", { href: hash, class: name === current ? "current" : null, "aria-current": name === current ? "page" : null }, title)));

/** parts: [[share, class, title]] as one horizontal bar */
export const bar = (parts, title) => h("div", { class: "bar", title }, parts.filter(([share]) => share > 0).map(([share, kind]) =>
  h("i", { class: kind, style: { width: `${Math.min(100, share * 100)}%` } })));

/** Tasks of a job by state, as small counters. */
export function taskCounts(tasks) {
  const order = ["created", "scheduled", "deploying", "initializing", "running", "finished", "canceling", "canceled", "failed", "reconciling"];
  const byState = Object.fromEntries(Object.entries(tasks).map(([state, number]) => [state.toLowerCase(), number]));
  return h("span", { class: "tasks" }, order.filter((state) => byState[state]).map((state) =>
    h("span", { class: `count state-${state}`, title: `${byState[state]} ${state}` }, byState[state])));
}

export const facts = (pairs) => h("dl", { class: "facts" }, pairs.filter(([, value]) => value !== null && value !== undefined).map(
  ([name, value]) => h("div", null, h("dt", null, name), h("dd", null, value))));

export const keyValues = (entries, none) => table(
  [{ title: "Key", class: "key", cell: (entry) => entry.key }, { title: "Value", class: "wrap", cell: (entry) => entry.value }],
  entries, { key: (entry) => entry.key, none });

/** Ask before something that cannot be undone; resolves to true or false. */
export function confirmed(title, text, action) {
  return new Promise((resolve) => {
    const finish = (answer) => { dialog.close(); dialog.remove(); resolve(answer); };
    const dialog = h("dialog", null, h("h2", null, title), h("p", null, text), h("div", { class: "buttons" },
      h("button", { type: "button", onclick: () => finish(false) }, "Keep it"),
      h("button", { type: "button", class: "danger", "data-action": "confirm", onclick: () => finish(true) }, action)));
    dialog.oncancel = () => finish(false);
    document.body.append(dialog);
    dialog.showModal();
  });
}
