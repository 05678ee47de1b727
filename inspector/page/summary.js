// The head of the page: what the file is, and the figures that matter first.

function renderTop(data) {
  document.title = `${data.title} · graphwright`;
  fill(
    byId("top"),
    el("p", { class: "made" }, `graphwright ${data.made_by}, file format ${data.format}`),
    el("h1", null, data.title),
    el("p", { class: "lead" }, leadOf(data)),
    el("p", { class: "facts" }, optionsOf(data)),
    el("dl", { class: "figures" }, figuresOf(data).map(figure)),
  );
}

/** What compile was asked for, but for what was left to it. */
function optionsOf(data) {
  const given = Object.entries(data.options)
    .filter(([, value]) => value !== null && value !== "auto" && typeof value !== "object")
    .map(([name, value]) => `${name.replaceAll("_", " ")} ${value}`);
  if (data.options.calibration) given.push("calibrated");
  return given.length ? `Options: ${given.join(", ")}.` : "";
}

function leadOf(data) {
  const layers = sum(data.graph.groups.filter((each) => !each.outside).map((each) => each.count));
  const quant = data.options.quant ? ` with ${data.options.quant} weights` : "";
  return `A decoder of ${plural(layers, "layer")}${quant}, compiled for ${data.target}.`;
}

function figure([label, value, note]) {
  return el(
    "div",
    null,
    el("dt", null, label),
    el("dd", null, value),
    el("dd", { class: "note" }, note),
  );
}

function figuresOf(data) {
  const perToken = data.kv.block_bytes / data.kv.block_size;
  const steps = Object.entries(data.memory).map(([name, each]) => [name, each.max_tokens]);
  const arena = Math.max(...Object.values(data.memory).map((each) => each.arena_bytes));
  const kinds = [...new Set(data.kv.states.map((each) => each.dtype))].join(", ");
  return [
    [
      "Weights",
      bytesText(data.weights.bytes),
      data.weight_kinds
        .slice(0, 2)
        .map(([dtype, layout, count]) => `${count} ${dtype} ${layout}`)
        .join(", "),
    ],
    [
      "Read for each token",
      bytesText(data.weights.bytes_per_token),
      "of weights, in a step of one token",
    ],
    [
      "KV cache for each token",
      bytesText(perToken),
      `${kinds || "no keys and values"}, blocks of ${data.kv.block_size} tokens`,
    ],
    [
      "Context",
      data.max_context === null ? "not stated" : whole(data.max_context),
      "tokens of one sequence at most",
    ],
    [
      "Tokens of one step",
      steps.map(([, most]) => whole(most)).join(" / "),
      `at most, of ${steps.map(([name]) => name).join(" and ")}`,
    ],
    ["Arena", bytesText(arena), "for everything computed in a step"],
    checksFigure(data.passes),
  ];
}

function checksFigure(passes) {
  const rewriting = passes.filter((each) => each.rewrites > 0);
  const checked = rewriting.filter((each) => each.verified !== null);
  if (!checked.length)
    return [
      "Checks",
      "none",
      `${plural(rewriting.length, "pass", "passes")} rewrote something unchecked: ` +
        "compile with --check",
    ];
  const worst = checked.reduce((a, b) => (a.verified >= b.verified ? a : b));
  return [
    "Checks by numbers",
    `${checked.length} of ${rewriting.length}`,
    `passes; largest error ${shareText(worst.verified)} of what is allowed, by ${worst.name}`,
  ];
}

function renderSections(sections) {
  fill(byId("sections"), ...sections.map(([id, title]) => el("a", { href: `#${id}` }, title)));
}
