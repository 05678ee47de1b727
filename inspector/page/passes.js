// The passes in order, and of the chosen one what it changed and the graph that it left.

function renderPasses(data) {
  const idle = data.passes.filter(isIdle).length;
  const list = el("div", { class: "list" });
  const detail = el("div", { class: "detail", id: "pass", "aria-live": "polite" });
  const most = Math.max(
    1,
    ...data.passes.map((each) => Math.max(each.nodes_before, each.nodes_after)),
  );
  let all = false;
  const draw = () => {
    const shown = data.passes.filter((each) => all || !isIdle(each));
    fill(
      list,
      passTable(shown, most, (pass) => choose(pass)),
    );
  };
  const choose = (pass) => {
    for (const row of list.querySelectorAll("tr[data-pass]")) {
      row.classList.toggle("chosen", row.dataset.pass === pass.name);
    }
    fill(detail, ...passDetail(data, pass));
  };
  const toggle = el("input", {
    type: "checkbox",
    id: "idle",
    onchange: () => {
      all = toggle.checked;
      draw();
    },
  });
  fill(
    byId("passes"),
    el("h2", null, "Passes"),
    el(
      "p",
      { class: "what" },
      "The model was traced once; each pass rewrote the graph a little. With checks " +
        "on, the program before and after was run and compared: the error is given as " +
        "a share of what is allowed. Choose a pass to see what it changed.",
    ),
    idle
      ? el(
          "p",
          null,
          el(
            "label",
            null,
            toggle,
            ` show the ${plural(idle, "pass", "passes")} that found nothing to do`,
          ),
        )
      : "",
    el("div", { class: "columns" }, list, detail),
  );
  draw();
  const compared = data.passes.filter((each) => each.delta);
  const first = compared.reduce(
    (a, b) => (gain(a) >= gain(b) ? a : b),
    compared[0] || data.passes[0],
  );
  if (first) choose(first);
  window.addEventListener("hashchange", () => fromHash(data, choose));
  fromHash(data, choose);
}

/** #pass=NAME chooses that pass. */
function fromHash(data, choose) {
  const pass = data.passes.find(
    (each) => location.hash === `#pass=${encodeURIComponent(each.name)}`,
  );
  if (pass) choose(pass);
}

function isIdle(pass) {
  return !pass.rewrites && !pass.misses.length && !pass.notes.length;
}

function gain(pass) {
  return pass.nodes_before - pass.nodes_after;
}

const PASS_COLUMNS = [
  ["pass", ""],
  ["rewrites", "number"],
  ["nodes", "number", "operations, weights and inputs of the graph, before and after"],
  ["", "bars"],
  ["error", "number", "largest error as a share of what is allowed, together with its stage"],
];

function passTable(passes, most, choose) {
  const rows = passes.flatMap((pass, i) => {
    const begins = pass.group && (i === 0 || passes[i - 1].group !== pass.group);
    const values = [
      el("button", { type: "button", class: "plain" }, pass.name, badge(pass)),
      pass.rewrites ? whole(pass.rewrites) : "–",
      pass.nodes_before === pass.nodes_after
        ? whole(pass.nodes_after)
        : `${whole(pass.nodes_before)} → ${whole(pass.nodes_after)}`,
      nodeBar(pass, most),
      pass.verified === null ? "–" : shareText(pass.verified),
    ];
    const row = el(
      "tr",
      { "data-pass": pass.name, class: isIdle(pass) ? "idle" : "", onclick: () => choose(pass) },
      cells(PASS_COLUMNS, values),
    );
    const title = pass.group.replace("_", " ");
    return begins
      ? [el("tr", { class: "stage" }, el("th", { colspan: PASS_COLUMNS.length }, title)), row]
      : [row];
  });
  return table(PASS_COLUMNS, rows, "passes");
}

function badge(pass) {
  if (!pass.misses.length) return "";
  return el(
    "span",
    { class: "badge", title: plural(pass.misses.length, "near miss", "near misses") },
    `left ${pass.misses.length}`,
  );
}

/** What stays, and beside it what went or came. */
function nodeBar(pass, most) {
  const stay = Math.min(pass.nodes_before, pass.nodes_after);
  const rest = Math.abs(gain(pass));
  return el(
    "span",
    { class: "bar", title: `${gain(pass) > 0 ? "−" : "+"}${rest} nodes` },
    el("i", { class: "stay", "width%": (100 * stay) / most }),
    rest ? el("i", { class: gain(pass) > 0 ? "gone" : "came", "width%": (100 * rest) / most }) : "",
  );
}

function passDetail(data, pass) {
  const body = el("div");
  const show = (what) => fill(body, what === "delta" ? deltaView(pass) : graphView(data, pass));
  const checked =
    pass.verified === null
      ? pass.rewrites
        ? "not checked by numbers"
        : "nothing to check"
      : `error ${shareText(pass.verified)} of what is allowed`;
  show("delta");
  return [
    el("h3", null, pass.name),
    ...pass.what
      .split("\n\n")
      .filter((each) => each)
      .map((each, i) => el("p", { class: i ? "dim more" : "" }, prose(each))),
    el(
      "p",
      { class: "facts" },
      `${plural(pass.rewrites, "rewrite")} · ${whole(pass.nodes_before)} → ` +
        `${whole(pass.nodes_after)} nodes · ${checked}`,
    ),
    remarks("Notes", pass.notes),
    remarks("Left alone", pass.misses),
    pass.stage === null
      ? el("p", { class: "dim" }, "The artifact holds no graph of this pass.")
      : choice(
          "View",
          [
            ["delta", "What changed"],
            ["graph", "Graph after it"],
          ],
          "delta",
          show,
        ),
    pass.stage === null ? "" : body,
  ].filter((each) => each !== "");
}

/** Sentences, those that differ in numbers alone once. */
function remarks(title, sentences) {
  if (!sentences.length) return "";
  const groups = new Map();
  for (const each of sentences) {
    const key = each.replace(/_\d+(?=')/g, "").replace(/\d+/g, "#");
    groups.set(key, [...(groups.get(key) || []), each]);
  }
  const items = [...groups.values()].map((group) =>
    el(
      "li",
      { title: group.slice(0, 40).join("\n") },
      group[0],
      group.length > 1 ? el("b", null, `  ×${group.length}`) : "",
    ),
  );
  return el("div", { class: "remarks" }, el("h4", null, title), el("ul", null, items));
}
