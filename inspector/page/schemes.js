// The schemes that the compiler chose for the weights: what each loses, and the line of best choices.

const TRIAL_COLUMNS = [
  ["bits a weight", "number"],
  ["predicted", "number", "the sum of what the weights lose one by one, in nats a token"],
  ["measured", "number", "what the whole loses on held-out tokens, in nats a token"],
  ["±", "number", "the standard error of the mean"],
  ["", ""],
];

function schemesView(choice) {
  if (!choice) return [];
  const trials = choice.trials.map((each) =>
    el(
      "tr",
      null,
      cells(TRIAL_COLUMNS, [
        each.bits.toFixed(3),
        significant(each.predicted),
        significant(each.measured),
        significant(each.error),
        each.accepted ? "within the budget" : "too much",
      ]),
    ),
  );
  return [
    el("h3", null, "Schemes of weights"),
    el(
      "p",
      null,
      `Chosen for ${choice.budget}, among ${choice.candidates.join(", ")}: ` +
        `${choice.bits.toFixed(2)} bits a weight, KL divergence ${significant(choice.measured)} ` +
        `nats a token on ${whole(choice.held_out)} tokens that nothing was chosen by ` +
        `(${significant(choice.predicted)} predicted).`,
    ),
    el("div", { class: "columns even" }, table(TRIAL_COLUMNS, trials, "trials"), lossChart(choice)),
    el("div", { class: "tall" }, lossTable(choice.weights)),
  ];
}

/** A row for each weight and a column for each scheme, from few bits to many. */
function lossTable(weights) {
  const bits = new Map();
  for (const each of weights)
    for (const option of each.options)
      if (!bits.has(option.scheme)) bits.set(option.scheme, option.bytes / each.elements);
  const schemes = [...bits.keys()].sort((a, b) => bits.get(a) - bits.get(b));
  const columns = [
    ["weight", "code"],
    ["numbers", "number"],
    ["chosen", "code"],
    ...schemes.map((scheme) => [
      scheme,
      "number",
      "nats a token that the model loses by this weight alone; ~: estimated, =: the numbers stay",
    ]),
  ];
  const rows = weights.map((each) => {
    const found = new Map(each.options.map((option) => [option.scheme, option]));
    const chosen = each.fixed ? `${each.scheme} (said)` : each.scheme;
    const losses = schemes.map((scheme) => lossText(found.get(scheme)));
    return el("tr", null, cells(columns, [each.name, whole(each.elements), chosen, ...losses]));
  });
  return table(columns, rows, "schemes");
}

function lossText(option) {
  if (!option) return "";
  if (option.how === "exact") return "=";
  return `${option.how === "estimated" ? "~" : ""}${Number(option.kl.toPrecision(2))}`;
}

/** The predicted loss over bits a weight, logarithmic, and what was tried as dots. */
function lossChart(choice) {
  const [width, height, left, bottom] = [420, 220, 60, 34];
  const line = choice.line.filter((each) => each.kl > 0);
  const tried = choice.trials.filter((each) => each.measured > 0);
  if (line.length < 2) return "";
  const kls = [...line.map((each) => each.kl), ...tried.map((each) => each.measured)];
  const [low, top] = [Math.min(...kls), Math.max(...kls)];
  const [least, most] = [line[0].bits, line[line.length - 1].bits];
  const x = (bits) =>
    left + ((width - left - 12) * (bits - least)) / Math.max(1e-9, most - least);
  const y = (kl) =>
    10 + ((height - bottom - 10) * Math.log(top / kl)) / Math.max(1e-9, Math.log(top / low));
  const ticks = [];
  for (let power = Math.ceil(Math.log10(low)); 10 ** power <= top; power += 1) {
    const at = y(10 ** power);
    ticks.push(
      svgEl("text", { x: left - 6, y: at + 4, class: "tick end" }, significant(10 ** power)),
      svgEl("line", { x1: left, x2: width - 12, y1: at, y2: at, class: "grid" }),
    );
  }
  for (let bits = Math.ceil(least); bits <= most; bits += most - least > 8 ? 2 : 1)
    ticks.push(
      svgEl("text", { x: x(bits), y: height - bottom + 16, class: "tick middle" }, String(bits)),
    );
  const dots = tried.map((each) =>
    svgEl(
      "circle",
      {
        cx: x(Math.min(Math.max(each.bits, least), most)),
        cy: y(each.measured),
        r: 4,
        class: `dot ${each.accepted ? "memory" : "both"}`,
      },
      svgEl("title", null, `${each.bits} bits: ${significant(each.measured)} nats measured`),
    ),
  );
  return el(
    "figure",
    null,
    svgEl(
      "svg",
      {
        viewBox: `0 0 ${width} ${height}`,
        role: "img",
        "aria-label": "Loss in nats a token over bits a weight",
      },
      ticks,
      svgEl("polyline", {
        points: line.map((each) => `${x(each.bits)},${y(each.kl)}`).join(" "),
        class: "roof",
      }),
      dots,
      svgEl(
        "text",
        { x: (left + width) / 2, y: height - 3, class: "tick middle" },
        "bits a weight",
      ),
    ),
    el(
      "figcaption",
      null,
      "The best choices as predicted, in nats a token; dots are what was tried, as measured.",
    ),
  );
}
