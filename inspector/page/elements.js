// Making elements, and writing numbers. Text of the artifact becomes text nodes and nothing else.

const SVG = "http://www.w3.org/2000/svg";

/** el("td", {class: "number"}, "12"): attributes, on… listeners, children as nodes or text. */
function el(tag, attributes, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

function svgEl(tag, attributes, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

function filled(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "width%") node.style.width = `${value}%`;
    else if (name === "left%") node.style.left = `${value}%`;
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(...children.flat(Infinity).filter((each) => each !== null && each !== undefined));
  return node;
}

/** What is in `node` from now on. */
function fill(node, ...children) {
  node.replaceChildren();
  filled(node, null, children);
}

function byId(id) {
  return document.getElementById(id);
}

/** Digits in groups of three. */
function whole(number) {
  return Math.round(number).toLocaleString("en-US");
}

function significant(number) {
  if (number === 0) return "0";
  if (number >= 1000) return whole(number);
  return String(Number(number.toPrecision(3)));
}

function scaled(number, base, units) {
  let at = 0;
  while (number >= base && at < units.length - 1) {
    number /= base;
    at += 1;
  }
  return `${significant(number)} ${units[at]}`;
}

function bytesText(number) {
  return scaled(number, 1000, ["B", "kB", "MB", "GB", "TB"]);
}

function operationsText(number) {
  return scaled(number, 1000, ["op", "kop", "Mop", "Gop", "Top"]);
}

function timeText(seconds) {
  return scaled(seconds * 1e9, 1000, ["ns", "µs", "ms", "s"]);
}

function shareText(share) {
  if (share === 0) return "0 %";
  if (share > 0 && share < 0.001) return "< 0.1 %";
  return `${(100 * share).toFixed(1)} %`;
}

function plural(number, one, many) {
  return `${whole(number)} ${number === 1 ? one : many || `${one}s`}`;
}

function sum(numbers) {
  return numbers.reduce((total, each) => total + each, 0);
}

/** A table in a box of its own that scrolls sideways. Columns are [title, class, explanation]. */
function table(columns, rows, className) {
  const head = columns.map(([title, kind, note]) => el("th", { class: kind, title: note }, title));
  return el(
    "div",
    { class: "scroll" },
    el(
      "table",
      { class: className },
      el("thead", null, el("tr", null, head)),
      el("tbody", null, rows),
    ),
  );
}

function cells(columns, values) {
  return values.map((value, i) => el("td", { class: columns[i][1] }, value));
}

/** A sentence in which `this` is code. */
function prose(text) {
  return text.split("`").map((part, i) => (i % 2 ? el("code", null, part) : part));
}

/** A row of buttons of which one is chosen. */
function choice(label, options, chosen, pick) {
  const buttons = options.map(([value, title]) =>
    el(
      "button",
      {
        type: "button",
        "aria-pressed": String(value === chosen),
        onclick: () => {
          buttons.forEach((each, i) =>
            each.setAttribute("aria-pressed", String(options[i][0] === value)),
          );
          pick(value);
        },
      },
      title,
    ),
  );
  return el("div", { class: "choice", role: "group", "aria-label": label }, buttons);
}

/** What a kernel is called without its CPU. */
function shortKernel(name) {
  return name.replace(/_(x86_64_v\w+|aarch64\w*)$/, "");
}
