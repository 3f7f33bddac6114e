// Elements and their update in place: a page renders a whole new tree at each refresh, `morph` changes only what
// differs, so focus, selection, scroll position and open dialogs stay and nothing flickers.

const SVG = "http://www.w3.org/2000/svg";
const SVG_TAGS = new Set(["svg", "path", "g", "circle", "rect", "marker", "defs", "title", "text", "line"]);

/** h("td", {class: "number", onclick}, child, …): children are nodes, texts, arrays of both, or null. */
export function h(tag, properties, ...children) {
  const node = SVG_TAGS.has(tag) ? document.createElementNS(SVG, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(properties || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node[name] = value;
    else if (name === "style") for (const [key, text] of Object.entries(value)) node.style.setProperty(key, text);
    else if (name === "value") { node.value = value; node.setAttribute("value", value); }
    else node.setAttribute(name, value === true ? "" : value);
  }
  append(node, children);
  return node;
}

function append(node, children) {
  for (const child of children) {
    if (child === null || child === undefined || child === false) continue;
    if (Array.isArray(child)) append(node, child);
    else node.append(child instanceof Node ? child : document.createTextNode(String(child)));
  }
}

const HANDLERS = ["onclick", "oninput", "onchange", "onsubmit", "onkeydown", "ondragover", "ondragleave", "ondrop", "onmouseover", "onmouseleave"];

function keyOf(node) {
  return node.nodeType === Node.ELEMENT_NODE ? node.getAttribute("data-key") : null;
}

function same(a, b) {
  return a.nodeType === b.nodeType && a.nodeName === b.nodeName && keyOf(a) === keyOf(b);
}

/** Make `target` look like `source`, keeping the nodes that fit. */
export function morph(target, source) {
  if (target.nodeType === Node.TEXT_NODE) {
    if (target.data !== source.data) target.data = source.data;
    return;
  }
  for (const { name } of [...target.attributes]) {
    if (name !== "style" && name !== "open" && !source.hasAttribute(name)) target.removeAttribute(name);
  }
  for (const { name, value } of source.attributes) {
    // The user's own text in a field is not overwritten; style goes through the object model because of the CSP.
    if (name === "style" || (name === "value" && target === document.activeElement)) continue;
    if (target.getAttribute(name) !== value) target.setAttribute(name, value);
  }
  if (target.style && target.style.cssText !== source.style.cssText) target.style.cssText = source.style.cssText;
  for (const handler of HANDLERS) if (target[handler] !== source[handler]) target[handler] = source[handler];
  morphChildren(target, source);
}

export function morphChildren(target, source) {
  const wanted = [...source.childNodes];
  const keyed = new Map();
  for (const child of target.childNodes) if (keyOf(child)) keyed.set(keyOf(child), child);
  const kept = new Set(wanted.map(keyOf));
  // What goes is removed before anything is matched: moving a node would take the focus from a field inside it.
  for (const [key, child] of keyed) if (!kept.has(key)) { child.remove(); keyed.delete(key); }
  let cursor = target.firstChild;
  for (const next of wanted) {
    const key = keyOf(next);
    let match = key ? keyed.get(key) : cursor;
    if (match && !same(match, next)) match = null;
    if (!match) {
      target.insertBefore(next, cursor);
      continue;
    }
    if (match !== cursor) target.insertBefore(match, cursor);
    else cursor = cursor.nextSibling;
    morph(match, next);
  }
  while (cursor) {
    const after = cursor.nextSibling;
    cursor.remove();
    cursor = after;
  }
}
