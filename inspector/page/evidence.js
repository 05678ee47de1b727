// What the file holds so that others can check it.

function renderEvidence(data) {
  fill(
    byId("evidence"),
    el("h2", null, "Evidence"),
    el(
      "p",
      { class: "what" },
      prose(
        "`graphwright verify` checks every hash and replays the golden tokens on the " +
          "machine at hand; `graphwright diff` compares two such files.",
      ),
    ),
    ...schemesView(data.choice),
    ...goldenView(data.golden),
    ...tuningView(data.tuning),
    el("h3", null, "How it was made"),
    el(
      "div",
      { class: "columns even" },
      pairs("Options of compile", data.options),
      pairs("Versions", data.versions),
    ),
    data.variants.length
      ? el(
          "p",
          null,
          "Code for several CPUs, of which each machine takes the first that it can run: " +
            `${data.variants.join(", ")}. Kernels and predictions above are those of the ` +
            "first.",
        )
      : "",
    ...weightsView(data.weight_kinds),
    el("h3", null, "Entries and their hashes"),
    el(
      "div",
      { class: "tall" },
      table(
        FILE_COLUMNS,
        data.files.map((each) =>
          el("tr", null, cells(FILE_COLUMNS, [each[0], whole(each[1]), each[2]])),
        ),
        "files",
      ),
    ),
  );
}

const FILE_COLUMNS = [
  ["entry", "code"],
  ["bytes", "number"],
  ["sha256", "code hash"],
];
const GOLDEN_COLUMNS = [
  ["", "number"],
  ["token", "number"],
  ["its logit", "number"],
  [
    "ahead by",
    "number",
    "of the second largest logit: where it is small, another machine may choose otherwise",
  ],
];
const WEIGHT_COLUMNS = [
  ["dtype", "code"],
  ["layout", "code"],
  ["tensors", "number"],
  ["bytes", "number"],
];
const TUNING_COLUMNS = [
  ["kernel", "code"],
  ["shape", "code"],
  ["calls", "number"],
  ["default", "code"],
  ["taken", "code"],
  ["gain", "number"],
  ["how", ""],
];

function goldenView(golden) {
  if (!golden)
    return [
      el("h3", null, "Golden tokens"),
      el(
        "p",
        { class: "dim" },
        "The artifact has none: they are made where the program can be run while it is compiled.",
      ),
    ];
  const rows = golden.greedy.map((token, i) =>
    el(
      "tr",
      null,
      cells(GOLDEN_COLUMNS, [
        String(i + 1),
        String(token),
        golden.top ? golden.top[i].toFixed(3) : "–",
        golden.gap ? golden.gap[i].toFixed(3) : "–",
      ]),
    ),
  );
  return [
    el("h3", null, "Golden tokens"),
    el(
      "p",
      null,
      "What the reference interpreter says after the prompt ",
      el("code", null, golden.prompt.join(" ")),
      ", greedily:",
    ),
    table(GOLDEN_COLUMNS, rows, "golden"),
  ];
}

function tuningView(tuning) {
  if (!tuning) return [];
  const rows = tuning.map((each) =>
    el(
      "tr",
      null,
      cells(TUNING_COLUMNS, [
        each.kernel,
        Object.entries(each.shape || {})
          .map(([key, value]) => `${key}=${value}`)
          .join(" "),
        whole(each.calls),
        String(each.default),
        String(each.chosen),
        each.chosen === each.default ? "–" : `${(100 * (each.gain - 1)).toFixed(0)} %`,
        String(each.source),
      ]),
    ),
  );
  return [
    el("h3", null, "Tuning"),
    el("p", null, "Variants of kernels that were timed where the artifact was compiled."),
    el("div", { class: "tall" }, table(TUNING_COLUMNS, rows, "tuning")),
  ];
}

function weightsView(kinds) {
  if (!kinds.length) return [];
  return [
    el("h3", null, "Weights"),
    table(
      WEIGHT_COLUMNS,
      kinds.map((each) =>
        el(
          "tr",
          null,
          cells(WEIGHT_COLUMNS, [each[0], each[1], whole(each[2]), bytesText(each[3])]),
        ),
      ),
      "weights",
    ),
  ];
}

function pairs(title, found) {
  const rows = Object.entries(found).map(([key, value]) =>
    el(
      "tr",
      null,
      el("th", { scope: "row" }, key),
      el(
        "td",
        null,
        value === null ? "–" : typeof value === "object" ? JSON.stringify(value) : String(value),
      ),
    ),
  );
  return el(
    "div",
    null,
    el("table", { class: "pairs" }, el("caption", null, title), el("tbody", null, rows)),
  );
}
