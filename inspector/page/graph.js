// The planned graph by layer, with what lowers each node and, on CPUs, what that should cost.

function renderGraph(data, state) {
  const priced = hasFacts(data);
  const body = el("div");
  const views = el("input", { type: "checkbox", onchange: () => state.changed() });
  fill(
    byId("graph"),
    el("h2", null, "Graph"),
    el(
      "p",
      { class: "what" },
      "What runs, after all passes. Layers that compute the same are shown once; " +
        "names are those of the first of them. T is the number of tokens of a step, R " +
        "of those that are sampled.",
    ),
    costNote(data, priced),
    priced
      ? loadControls(data, state)
      : choice(
          "Entry",
          Object.keys(data.entries).map((name) => [name, name]),
          state.entry,
          (entry) => {
            state.entry = entry;
            state.changed();
          },
        ),
    el("p", null, el("label", null, views, " show slices and reshapes: views, which run nothing")),
    body,
  );
  const open = new Map();
  state.listen(() => {
    const found = priced ? predictEntry(data, state) : null;
    const total = found ? sum(found.flat().map((each) => each.seconds)) : 0;
    fill(
      body,
      data.graph.matched[state.entry] === false
        ? el(
            "p",
            { class: "dim" },
            "The ledger’s steps are not those of this graph, so that no node is shown with " +
              "its kernels.",
          )
        : "",
      ...data.graph.groups.map((group, i) =>
        groupView(data, state, group, found, total, views.checked, open, i),
      ),
    );
  });
}

function costNote(data, priced) {
  const text = priced
    ? "Bytes, operations and times are predicted: no node takes less than its bytes " +
      "do at the memory’s rate, nor than its operations do at the arithmetic’s. The " +
      "machine is an example; `graphwright inspect FILE --kernels` says what yours " +
      "gives."
    : data.gpu
      ? "There are no predictions for GPUs; launches and what they take of the chip " +
        `are below. Types are the program’s: f32 activations are kept as \`--dtype\` ` +
        `says (here ${data.options.dtype || "auto"}; auto is bf16).`
      : "The artifact holds no facts of its kernels, so that nothing is predicted.";
  return el("p", { class: "what" }, prose(text));
}

function groupView(data, state, group, found, total, views, open, number) {
  const few = group.count > 1 || data.graph.groups.length <= 6;
  return remembered(
    open,
    `group ${number}`,
    few,
    "group",
    el(
      "summary",
      null,
      el("b", null, groupTitle(data, group, number)),
      group.count > 1 ? el("span", { class: "times" }, `× ${group.count}`) : "",
      el(
        "span",
        { class: "dim" },
        plural(group.steps[0].length, "node that runs", "nodes that run"),
      ),
      found ? groupCost(group, found, total) : "",
    ),
    loweredAlike(data, state, group)
      ? ""
      : el(
          "p",
          { class: "dim inset" },
          "Kernels are those of the first of these layers; some of the others are " +
            "lowered otherwise.",
        ),
    nodeTable(data, state, group, found, views, open),
  );
}

function groupTitle(data, group, number) {
  if (!group.outside) return `${group.count === 1 ? "Layer" : "Layers"} ${group.layers}`;
  const first = data.graph.groups.findIndex((each) => !each.outside);
  if (first < 0) return "Outside of layers";
  return number < first ? "Before the layers" : "After the layers";
}

function groupCost(group, found, total) {
  const seconds = sum(
    group.steps
      .flat()
      .flatMap((step) => found[step])
      .map((each) => each.seconds),
  );
  const share = total ? seconds / total : 0;
  return [
    el(
      "span",
      { class: "cost" },
      `${timeText(seconds / group.count)}${group.count > 1 ? " each" : ""}, ` +
        `${shareText(share)} of the step`,
    ),
    el("span", { class: "bar wide" }, el("i", { class: "stay", "width%": 100 * share })),
  ];
}

/** Are the nodes of all layers of the group lowered to the same kernels? */
function loweredAlike(data, state, group) {
  if (data.graph.matched[state.entry] !== true) return true;
  const { lowered } = data.entries[state.entry];
  const used = group.steps.map((steps) =>
    steps
      .map((step) => lowered[step])
      .sort((a, b) => a - b)
      .join(" "),
  );
  return used.every((each) => each === used[0]);
}

/** A details element that is drawn again as it was left. */
function remembered(open, key, first, kind, ...children) {
  const box = el("details", { class: kind, open: open.get(key) ?? first }, children);
  box.addEventListener("toggle", () => open.set(key, box.open));
  return box;
}

const NODE_COLUMNS = [
  ["node", "code", "its op, and its number among those of the same op"],
  ["result", "code result"],
  ["reads", "code reads", "operands and constants; … stands for the path of the layer"],
  ["lowered by", "", "choose one to see its kernels"],
];
const COST_COLUMNS = [
  ["bytes", "number"],
  ["operations", "number"],
  ["op/byte", "number", "operations for each byte: the intensity"],
  ["bound", ""],
  ["predicted", "number"],
];

function nodeTable(data, state, group, found, views, open) {
  const toggles = new Map();
  const columns = found ? [...NODE_COLUMNS, ...COST_COLUMNS] : NODE_COLUMNS;
  const rows = [];
  for (const [name, type, op, operands, body, step] of group.nodes) {
    const runs = step !== null;
    if (!runs && !views && op !== "return") continue;
    const values = [
      body.length ? [nodeName(name, op), bodyToggle(name, open, toggles)] : nodeName(name, op),
      el("span", { title: type }, type),
      el(
        "span",
        { title: `%${name} : ${type} = ${op}(${operands})` },
        operands.replace(/%\w*?_\d+_(?=[a-zA-Z])/g, "%…"),
      ),
      runs ? lowering(data, state, step, open) : "",
    ];
    if (found) values.push(...(runs ? costCells(found[step]) : ["", "", "", "", ""]));
    rows.push(el("tr", { class: runs ? "" : "view" }, cells(columns, values)));
    if (body.length) {
      const inside = el(
        "tr",
        { class: "body", hidden: !open.get(`body ${name}`) },
        el("td", { colspan: columns.length }, el("pre", null, body.join("\n"))),
      );
      rows.push(inside);
      toggles.set(name, inside);
    }
  }
  return table(columns, rows, "nodes");
}

/** Shows and hides what a region or a recurrence computes, in the row behind its own. */
function bodyToggle(name, open, rows) {
  const title = (shown) => (shown ? "▾ body" : "▸ body");
  const button = el(
    "button",
    {
      type: "button",
      class: "badge",
      onclick: () => {
        const shown = !open.get(`body ${name}`);
        open.set(`body ${name}`, shown);
        rows.get(name).hidden = !shown;
        button.textContent = title(shown);
      },
    },
    title(open.get(`body ${name}`)),
  );
  return button;
}

/** gw.rms_norm_2: the op is what is read first. */
function nodeName(name, op) {
  const match = /^(.*?)(_\d+)$/.exec(name);
  if (!match) return name || op;
  const space = op.includes(".") ? `${op.split(".")[0]}.` : "";
  return [el("span", { class: "dim" }, space), match[1], el("span", { class: "dim" }, match[2])];
}

function lowering(data, state, step, open) {
  if (data.graph.matched[state.entry] !== true) return "";
  const entry = data.entries[state.entry];
  const row = entry.ledger[entry.lowered[step]];
  const names = row.kernels.map(shortKernel);
  const many = names.length > 1 ? ` ×${names.length}` : "";
  const shown = names.length
    ? `${row.lowering}${many}`
    : `${row.lowering}, in a neighbour’s kernel`;
  const said = [...names, ...row.refusals.map((each) => `refused: ${each}`)];
  return remembered(
    open,
    `kernels ${step}`,
    false,
    "kernels",
    el(
      "summary",
      { title: said.join("\n") },
      shown,
      row.refusals.length
        ? el("span", { class: "badge" }, `refused by ${row.refusals.length}`)
        : "",
    ),
    said.map((each) => el("div", { class: "code" }, each)),
  );
}

function costCells(phases) {
  const bytes = sum(phases.map((each) => each.bytes));
  const operations = sum(phases.map((each) => each.operations));
  const bounds = [...new Set(phases.map((each) => each.bound))];
  return [
    bytesText(bytes),
    operationsText(operations),
    bytes ? significant(operations / bytes) : "–",
    bounds.length === 1
      ? el("span", { class: `bound ${bounds[0]}` }, bounds[0])
      : bounds.length
        ? "both"
        : "",
    phases.length ? timeText(sum(phases.map((each) => each.seconds))) : "–",
  ];
}
