// What a whole step should cost: by kind of bytes, and by kernel.

function renderCost(data, state) {
  const body = el("div");
  fill(
    byId("cost"),
    el("h2", null, "Cost of a step"),
    el(
      "p",
      { class: "what" },
      prose(
        "A prediction, not a measurement: `graphwright bench --profile` measures each " +
          "kernel beside it. It is for the step and the machine that are set above, and " +
          "for one sequence.",
      ),
    ),
    body,
  );
  state.listen(() => {
    const phases = costed(data, state);
    fill(
      body,
      totals(data, state, phases),
      byteParts(data, state),
      el("div", { class: "columns even" }, rooflineChart(state, phases), kernelTable(phases)),
    );
  });
}

/** The phases of the entry, each with its prediction and kernel. */
function costed(data, state) {
  const entry = data.entries[state.entry];
  const distinct = predict(entry.facts, state.loads[state.entry], state.machine);
  return entry.phases.flat().map((number) => ({
    ...distinct[number],
    kernel: shortKernel(entry.facts[number].kernel),
    arithmetic: entry.facts[number].arithmetic,
  }));
}

function totals(data, state, phases) {
  const seconds = sum(phases.map((each) => each.seconds));
  const bytes = sum(phases.map((each) => each.bytes));
  const operations = sum(phases.map((each) => each.operations));
  const { tokens, before } = state.loads[state.entry];
  const memory = sum(phases.filter((each) => each.bound === "memory").map((each) => each.seconds));
  return el(
    "dl",
    { class: "figures", id: "step-total" },
    [
      [
        "Predicted",
        timeText(seconds),
        `${state.entry}: ${plural(tokens, "token")}${before ? ` after ${whole(before)}` : ""}` +
          (tokens + before > (data.max_context ?? Infinity) ? ", beyond the context" : ""),
      ],
      ["At most", `${whole(tokens / seconds)} tokens/s`, "waiting and the sampler not counted"],
      ["Moved", bytesText(bytes), `at ${significant(state.machine.bandwidth)} GB/s`],
      [
        "Computed",
        operationsText(operations),
        `${significant(operations / bytes)} operations for each byte`,
      ],
      ["Bound by memory", shareText(seconds ? memory / seconds : 0), "of the predicted time"],
    ].map(figure),
  );
}

function byteParts(data, state) {
  const entry = data.entries[state.entry];
  const load = state.loads[state.entry];
  const all = { weights: 0, cache: 0, activations: 0, states: 0 };
  for (const number of entry.phases.flat()) {
    const parts = partsOf(entry.facts[number], load);
    for (const kind of Object.keys(all)) all[kind] += parts[kind];
  }
  const total = sum(Object.values(all));
  const titles = {
    weights: "weights",
    cache: "keys and values",
    activations: "activations",
    states: "recurrent states",
  };
  const shown = Object.entries(all).filter(([, size]) => size > 0);
  return el(
    "div",
    { class: "parts" },
    el(
      "div",
      { class: "stack" },
      shown.map(([kind, size]) =>
        el("i", {
          class: `part ${kind}`,
          "width%": (100 * size) / total,
          title: `${titles[kind]}: ${bytesText(size)}`,
        }),
      ),
    ),
    el(
      "p",
      { class: "legend" },
      shown.map(([kind, size]) =>
        el(
          "span",
          null,
          el("i", { class: `part ${kind}` }),
          `${titles[kind]} ${bytesText(size)} (${shareText(size / total)})`,
        ),
      ),
    ),
  );
}

function grouped(phases) {
  const groups = new Map();
  for (const each of phases) {
    const row = groups.get(each.kernel) || {
      kernel: each.kernel,
      arithmetic: each.arithmetic,
      calls: 0,
      bytes: 0,
      operations: 0,
      seconds: 0,
      bounds: new Set(),
    };
    row.calls += 1;
    row.bytes += each.bytes;
    row.operations += each.operations;
    row.seconds += each.seconds;
    row.bounds.add(each.bound);
    groups.set(each.kernel, row);
  }
  return [...groups.values()].sort((a, b) => b.seconds - a.seconds);
}

const KERNEL_COLUMNS = [
  ["kernel", "code"],
  ["calls", "number"],
  ["bytes", "number"],
  ["operations", "number"],
  ["op/byte", "number"],
  ["bound", ""],
  ["predicted", "number"],
  ["", "bars"],
];

function kernelTable(phases) {
  const groups = grouped(phases);
  const most = Math.max(...groups.map((each) => each.seconds), 1e-30);
  const rows = groups.map((each) => {
    const bound = each.bounds.size === 1 ? [...each.bounds][0] : "both";
    return el(
      "tr",
      null,
      cells(KERNEL_COLUMNS, [
        el("span", { title: each.kernel }, each.kernel),
        whole(each.calls),
        bytesText(each.bytes),
        operationsText(each.operations),
        each.bytes ? significant(each.operations / each.bytes) : "–",
        el("span", { class: `bound ${bound}` }, bound),
        timeText(each.seconds),
        el(
          "span",
          { class: "bar" },
          el("i", { class: "stay", "width%": (100 * each.seconds) / most }),
        ),
      ]),
    );
  });
  return el("div", { class: "tall" }, table(KERNEL_COLUMNS, rows, "kernels-table"));
}
