// The shell of the dashboard: routes (in the hash), the refresh loop, the top bar, problems.
//
// A page is {interval?: false, load(parameters, signal) → data, render(data, parameters, context) → node}.

import { getJson } from "./api.js";
import { h, morphChildren } from "./dom.js";
import * as job from "./job.js";
import * as jobmanager from "./jobmanager.js";
import * as overview from "./overview.js";
import { empty } from "./parts.js";
import * as submit from "./submit.js";
import * as taskmanagers from "./taskmanagers.js";

const ROUTES = [
  [/^\/overview$/, overview.page],
  [/^\/job\/(?<jid>[0-9a-f]{32})(?:\/(?<tab>\w+)(?:\/(?<detail>\w+)(?:\/(?<view>\w+)(?:\/(?<kind>\w+)(?:\/(?<subtask>\d+))?)?)?)?)?$/, job.page],
  [/^\/taskmanagers$/, taskmanagers.list],
  [/^\/taskmanager\/(?<id>[^/]+)(?:\/(?<tab>\w+)(?:\/(?<file>[^/]+))?)?$/, taskmanagers.page],
  [/^\/jobmanager(?:\/(?<tab>\w+)(?:\/(?<file>[^/]+))?)?$/, jobmanager.page],
  [/^\/submit$/, submit.page],
];

const context = { config: null, refresh: () => run() };
let running = null; // AbortController of the page that is shown
let timer = 0;
let shown = "";

function route() {
  const path = location.hash.replace(/^#/, "") || "/overview";
  for (const [pattern, page] of ROUTES) {
    const match = pattern.exec(path);
    if (!match) continue;
    const parameters = {};
    for (const [name, value] of Object.entries(match.groups || {})) {
      if (value !== undefined) try { parameters[name] = decodeURIComponent(value); } catch { parameters[name] = value; }
    }
    return { path, page, parameters };
  }
  return { path, page: null, parameters: {} };
}

function show(...nodes) {
  morphChildren(document.getElementById("page"), h("div", null, nodes));
}

function problem(text) {
  const box = document.getElementById("problem");
  box.hidden = !text;
  if (box.textContent !== text) box.textContent = text;
}

function topBar(path) {
  const entries = [["overview", "Overview", /^\/(overview|job\/)/], ["taskmanagers", "TaskManagers", /^\/taskmanager/], ["jobmanager", "JobManager", /^\/jobmanager/]];
  if (!context.config || context.config.features["web-submit"]) entries.push(["submit", "Submit program", /^\/submit/]);
  const dark = isDark();
  const bar = h("div", null,
    h("a", { class: "brand", href: "#/overview" }, h("img", { src: new URL("icon.svg", import.meta.url).href, alt: "", width: 24, height: 24 }), "Dashboard"),
    h("nav", null, entries.map(([name, title, pattern]) => h("a", { href: `#/${name}`, class: pattern.test(path) ? "current" : null }, title))),
    h("span", { class: "grow" }),
    context.config ? h("span", { class: "version" }, `Version ${context.config["flink-version"]}`) : null,
    h("button", { class: "plain", type: "button", title: dark ? "Light colours" : "Dark colours", "aria-label": "Switch colours", onclick: switchTheme }, dark ? "☀" : "☾"));
  morphChildren(document.getElementById("top"), bar);
}

function isDark() {
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

function switchTheme() {
  const theme = isDark() ? "light" : "dark";
  document.documentElement.dataset.theme = theme;
  try { localStorage.setItem("theme", theme); } catch { /* private mode */ }
  topBar(route().path);
}

async function run() {
  clearTimeout(timer);
  if (running) running.abort();
  const controller = running = new AbortController();
  const { path, page, parameters } = route();
  if (shown !== path.split("/").slice(0, 3).join("/")) {
    shown = path.split("/").slice(0, 3).join("/");
    show(h("p", { class: "loading" }, "Loading…"));
    scrollTo(0, 0);
  }
  topBar(path);
  if (!page) return show(empty("There is no such page", "Choose one above."));
  let again = context.config ? context.config["refresh-interval"] : 3000;
  try {
    context.config = context.config || await getJson("config", controller.signal);
    again = context.config["refresh-interval"];
    // A page that is looked at through nothing asks for nothing.
    const data = await page.load(parameters, controller.signal);
    if (controller.signal.aborted) return;
    show(page.render(data, parameters, context));
    problem("");
    topBar(path);
    if (page.interval === false || (page.once && page.once(parameters))) again = 0;
  } catch (error) {
    if (controller.signal.aborted) return;
    if (error.status === 404) { show(empty("Not found", error.message)); problem(""); }
    else { problem(error.message); if (!error.status && error.status !== 0) console.error(error); }
  }
  document.body.dataset.ready = path;
  if (again > 0) timer = setTimeout(tick, Math.max(again, 250));
}

function tick() {
  if (document.hidden) document.addEventListener("visibilitychange", () => run(), { once: true });
  else run();
}

try {
  const theme = localStorage.getItem("theme");
  if (theme) document.documentElement.dataset.theme = theme;
} catch { /* private mode */ }
addEventListener("hashchange", () => { delete document.body.dataset.ready; run(); });
run();
