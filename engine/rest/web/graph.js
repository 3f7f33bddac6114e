// Draws a plan: vertices in layers from left to right, edges as curves labelled with how records are shipped.
// Metrics are optional, so the plan of a program that has not been submitted is drawn by the same code.

import { h } from "./dom.js";
import { bytes, percent, short } from "./format.js";
import { bar } from "./parts.js";

const WIDTH = 232;
const GAP_X = 96;
const GAP_Y = 28;

export const plainText = (text) => text.replace(/<br\s*\/?>/gi, " ").replace(/&gt;/g, ">").replace(/&lt;/g, "<").replace(/&amp;/g, "&").replace(/\s+/g, " ").trim();

/** Return {node id → {x, y}} and the size of the drawing. */
export function layout(nodes, height) {
  const byId = new Map(nodes.map((node) => [node.id, node]));
  const inputs = (node) => (node.inputs || []).filter((input) => byId.has(input.id));
  const rank = new Map();
  const rankOf = (node, path) => {
    if (rank.has(node.id)) return rank.get(node.id);
    if (path.has(node.id)) return 0; // an iteration's way back
    path.add(node.id);
    const value = Math.max(-1, ...inputs(node).map((input) => rankOf(byId.get(input.id), path))) + 1;
    path.delete(node.id);
    rank.set(node.id, value);
    return value;
  };
  nodes.forEach((node) => rankOf(node, new Set()));
  // A source stands directly before its first consumer, so that edges stay short.
  for (const node of nodes) {
    if (inputs(node).length) continue;
    const consumers = nodes.filter((other) => inputs(other).some((input) => input.id === node.id));
    if (consumers.length) rank.set(node.id, Math.max(0, Math.min(...consumers.map((other) => rank.get(other.id))) - 1));
  }
  const layers = [];
  for (const node of nodes) (layers[rank.get(node.id)] ||= []).push(node);
  const row = new Map();
  layers.filter(Boolean).forEach((layer) => {
    const weight = (node) => {
      const rows = inputs(node).map((input) => row.get(input.id)).filter((value) => value !== undefined);
      return rows.length ? rows.reduce((sum, value) => sum + value, 0) / rows.length : layer.indexOf(node);
    };
    layer.map((node) => [weight(node), node]).sort((a, b) => a[0] - b[0]).forEach(([, node], index) => row.set(node.id, index));
  });
  const tallest = Math.max(1, ...layers.filter(Boolean).map((layer) => layer.length));
  const total = tallest * (height + GAP_Y) - GAP_Y;
  const places = new Map();
  layers.forEach((layer, column) => layer.forEach((node) => places.set(node.id, {
    x: column * (WIDTH + GAP_X),
    y: (total - (layer.length * (height + GAP_Y) - GAP_Y)) / 2 + row.get(node.id) * (height + GAP_Y),
  })));
  return { places, width: layers.length * (WIDTH + GAP_X) - GAP_X, height: total };
}

/** vertices: Map id → vertex of /jobs/:id with {rates} added, or null for a bare plan. */
export function graph(plan, { vertices = null, link = null, selected = "" } = {}) {
  const nodeHeight = vertices ? 148 : 76;
  const { places, width, height } = layout(plan.nodes, nodeHeight);
  const edges = [];
  const labels = [];
  for (const node of plan.nodes) {
    for (const input of node.inputs || []) {
      const from = places.get(input.id);
      const to = places.get(node.id);
      if (!from || !to) continue;
      const [x1, y1, x2, y2] = [from.x + WIDTH, from.y + nodeHeight / 2, to.x - 7, to.y + nodeHeight / 2];
      const bend = Math.max(40, (x2 - x1) / 2);
      edges.push(h("path", { d: `M${x1} ${y1}C${x1 + bend} ${y1} ${x2 - bend} ${y2} ${x2} ${y2}`, class: "edge", "marker-end": "url(#arrow)" }));
      labels.push(h("span", { class: "ship", style: { left: `${(x1 + x2) / 2}px`, top: `${(y1 + y2) / 2}px` } }, input.ship_strategy || ""));
    }
  }
  return h("div", { class: "scroll graph-scroll" }, h("div", { class: "graph", style: { width: `${width}px`, height: `${height}px` } },
    h("svg", { width, height, viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" },
      h("defs", null, h("marker", { id: "arrow", viewBox: "0 0 8 8", refX: "1", refY: "4", markerWidth: "8", markerHeight: "8", markerUnits: "userSpaceOnUse", orient: "auto" }, h("path", { d: "M0 0L8 4L0 8z", class: "arrow" }))),
      edges),
    labels,
    plan.nodes.map((node) => drawn(node, places.get(node.id), nodeHeight, vertices && vertices.get(node.id), link, selected))));
}

/** Browsers break lines between the two characters of an arrow. */
const withWholeArrows = (text) => text.split(/(->)/).map((part) => (part === "->" ? h("span", { class: "unbroken" }, part) : part));

function drawn(node, place, height, vertex, link, selected) {
  const title = plainText(vertex ? vertex.name : node.description || node.operator || node.id);
  const style = { left: `${place.x}px`, top: `${place.y}px`, width: `${WIDTH}px`, height: `${height}px` };
  const state = vertex ? vertex.status.toLowerCase() : "none";
  const content = [
    h("strong", { title }, withWholeArrows(title)),
    h("div", { class: "line" }, vertex ? h("span", { class: `state-text state-${state}` }, vertex.status) : null, h("span", { class: "dim" }, `Parallelism ${node.parallelism}`)),
  ];
  if (vertex) {
    const { metrics, rates } = vertex;
    content.push(
      h("div", { class: "line" }, h("span", null, "In ", h("b", null, short(metrics["read-records"]))), h("span", null, "Out ", h("b", null, short(metrics["write-records"]))), h("span", { class: "dim" }, bytes(metrics["write-bytes"]))),
      bar([[rates.busy, "busy"], [rates.backpressured, "backpressured"]], `busy ${percent(rates.busy)}, backpressured ${percent(rates.backpressured)}, idle ${percent(rates.idle)}`),
      h("div", { class: "line dim" }, h("span", { class: "busy-text" }, `Busy ${percent(rates.busy)}`), h("span", { class: rates.backpressured >= 0.1 ? "backpressured-text" : null }, `Backpressure ${percent(rates.backpressured)}`)));
  }
  const properties = { class: `node state-${state}${selected === node.id ? " selected" : ""}`, style, "data-key": node.id };
  return link ? h("a", { ...properties, href: link(node.id) }, content) : h("div", properties, content);
}
