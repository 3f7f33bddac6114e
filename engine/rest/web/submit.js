// Upload a program, look at its plan, run it.

import { getJson, post, quoted, remove, upload } from "./api.js";
import { h } from "./dom.js";
import { time } from "./format.js";
import { graph } from "./graph.js";
import { confirmed, empty, table } from "./parts.js";

// What the user has typed and seen on this page; it outlives refreshes.
const form = { selected: "", entry: "", args: "", parallelism: "" };
const state = { busy: "", error: "", plan: null, progress: null };

export const page = {
  load: (_, signal) => getJson("jars", signal),

  render({ files, address }, _, context) {
    if (!files.some((file) => file.id === form.selected)) form.selected = "";
    return h("div", { class: "stack" },
      uploadCard(address, context),
      state.error ? h("section", { class: "card failure", "data-key": "failure" }, h("div", { class: "title" }, h("h2", null, "That did not work"), h("span", { class: "grow" }),
        h("button", { type: "button", class: "plain", "aria-label": "Dismiss", onclick: () => { state.error = ""; context.refresh(); } }, "✕")), h("pre", null, state.error)) : null,
      h("section", { class: "card", "data-key": "programs" }, h("h2", null, "Uploaded programs"), table([
        { title: "Program", class: "name", cell: (row) => row.name },
        { title: "Uploaded", class: "number", cell: (row) => time(row.uploaded) },
        { title: "Entry points", cell: (row) => row.entry.map((entry) => entry.name).join(", ") || "–" },
        { title: "", class: "number", cell: (row) => h("button", { type: "button", class: "plain", onclick: () => drop(row, context) }, "Delete") },
      ], files, {
        key: (row) => row.id, selected: (row) => row.id === form.selected,
        onselect: (row) => { const other = form.selected !== row.id; form.selected = other ? row.id : ""; form.entry = other && row.entry.length ? row.entry[0].name : ""; state.plan = null; context.refresh(); },
        none: empty("No program has been uploaded", "A .py file, or a .zip, .whl or .pyz archive."),
      }),
      form.selected ? runForm(files.find((file) => file.id === form.selected), address, context) : null),
      state.plan ? h("section", { class: "card", id: "plan", "data-key": "plan" }, h("h2", null, `Plan of ${state.plan.name}`), graph(state.plan)) : null);
  },
};

function uploadCard(address, context) {
  const take = async (file) => {
    if (!file) return;
    Object.assign(state, { error: "", progress: 0 });
    context.refresh();
    try {
      const answer = await upload("jars/upload", file, (share) => { state.progress = share; const meter = document.querySelector("progress"); if (meter) meter.value = share; });
      form.selected = answer.filename.split("/").pop();
      form.entry = "";
      state.plan = null;
    } catch (error) { fail(error, address); }
    state.progress = null;
    context.refresh();
  };
  return h("section", { class: "card", "data-key": "upload" }, h("label", {
    class: "drop",
    ondragover: (event) => { event.preventDefault(); event.currentTarget.classList.add("over"); },
    ondragleave: (event) => event.currentTarget.classList.remove("over"),
    ondrop: (event) => { event.preventDefault(); event.currentTarget.classList.remove("over"); take(event.dataTransfer.files[0]); },
  },
  h("input", { type: "file", id: "file", accept: ".py,.zip,.whl,.pyz", onchange: (event) => { take(event.target.files[0]); event.target.value = ""; } }),
  state.progress === null ? h("span", null, h("strong", null, "Choose a program"), " or drop it here") : h("span", null, "Uploading… ", h("progress", { max: "1", value: String(state.progress) })),
  h("small", null, ".py, .zip, .whl or .pyz")));
}

function fail(error, address) {
  // A proxy such as YARN's passes only GET; a direct address helps there.
  const hint = error.status === 405 || error.status === 0 || error.status === 501 ? `\nIf this page was opened through a proxy, open ${address} directly.` : "";
  state.error = error.message + hint;
}

async function drop(row, context) {
  if (!await confirmed("Delete this program?", `${row.name} is removed from the JobManager. Jobs that run already go on.`, "Delete")) return;
  try { await remove(`jars/${quoted(row.id)}`); } catch (error) { fail(error, ""); }
  context.refresh();
}

function runForm(file, address, context) {
  const field = (name, title, properties) => h("label", { class: "field" }, h("span", null, title),
    h("input", { name, value: form[name], autocomplete: "off", spellcheck: "false", oninput: (event) => { form[name] = event.target.value; }, ...properties }));
  const fields = () => ({
    entryClass: form.entry || undefined, programArgs: form.args || undefined, parallelism: form.parallelism ? Number(form.parallelism) : undefined,
  });
  const act = async (what, work) => {
    Object.assign(state, { busy: what, error: "", plan: null });
    context.refresh();
    try { await work(); } catch (error) { fail(error, address); }
    state.busy = "";
    context.refresh();
  };
  const query = () => new URLSearchParams(Object.entries({ "entry-class": form.entry, programArgs: form.args, parallelism: form.parallelism }).filter(([, value]) => value));
  const plan = () => act("plan", async () => { state.plan = (await getJson(`jars/${quoted(file.id)}/plan?${query()}`)).plan; });
  const submit = (event) => {
    event.preventDefault();
    act("run", async () => { location.hash = `#/job/${(await post(`jars/${quoted(file.id)}/run`, fields())).jobid}`; });
  };
  return h("form", { class: "run", onsubmit: submit, "data-key": file.id },
    field("entry", "Entry class", { placeholder: "package.module or package.module:function" }),
    field("args", "Program arguments", { placeholder: "--input hdfs:///texts --output hdfs:///counts" }),
    field("parallelism", "Parallelism", { type: "number", min: "1", placeholder: "default" }),
    h("div", { class: "buttons" },
      h("button", { type: "button", id: "show-plan", disabled: Boolean(state.busy), onclick: plan }, state.busy === "plan" ? "Planning…" : "Show plan"),
      h("button", { type: "submit", class: "primary", id: "submit", disabled: Boolean(state.busy) }, state.busy === "run" ? "Submitting…" : "Submit")));
}
