// The printed graph after a pass, line by line, to be searched.

/** The text of a graph: its lines, from the table. */
function graphLines(data, number) {
  return data.texts[number].map((line) => data.lines[line]);
}

function graphView(data, pass) {
  const lines = graphLines(data, pass.text);
  if (lines[lines.length - 1] === "") lines.pop();
  const box = el("pre", { class: "graph", tabindex: "0" });
  const found = el("span", { class: "dim", role: "status" }, plural(lines.length, "line"));
  const only = el("input", { type: "checkbox", onchange: () => draw() });
  let at = -1;
  const input = el("input", {
    type: "search",
    placeholder: "search: an op, a name, a shape",
    "aria-label": "Search the graph",
    oninput: () => draw(),
    onkeydown: (event) => {
      if (event.key === "Enter") step(event.shiftKey ? -1 : 1);
    },
  });
  const draw = () => {
    const wanted = input.value.toLowerCase();
    const numbered = lines.map((text, i) => [i + 1, text]);
    const shown =
      wanted && only.checked
        ? numbered.filter(([, text]) => text.toLowerCase().includes(wanted))
        : numbered;
    fill(
      box,
      ...shown.map(([number, text]) =>
        el(
          "span",
          { class: "line" },
          el("i", null, String(number)),
          el("span", null, marked(text, wanted)),
        ),
      ),
    );
    at = -1;
    const hits = wanted ? lines.filter((text) => text.toLowerCase().includes(wanted)).length : 0;
    found.textContent = wanted
      ? `${plural(hits, "line")} of ${whole(lines.length)}; Enter: next`
      : plural(lines.length, "line");
  };
  const step = (by) => {
    const marks = box.querySelectorAll("mark");
    if (!marks.length) return;
    if (at >= 0 && at < marks.length) marks[at].classList.remove("here");
    at = (at + by + marks.length) % marks.length;
    marks[at].classList.add("here");
    marks[at].scrollIntoView({ block: "nearest" });
  };
  draw();
  return el(
    "div",
    null,
    el("p", { class: "search" }, input, el("label", null, only, " only these lines"), found),
    box,
  );
}

function marked(text, wanted) {
  if (!wanted) return text;
  const parts = [];
  let from = 0;
  for (
    let hit = text.toLowerCase().indexOf(wanted);
    hit >= 0;
    hit = text.toLowerCase().indexOf(wanted, from)
  ) {
    parts.push(text.slice(from, hit), el("mark", null, text.slice(hit, hit + wanted.length)));
    from = hit + wanted.length;
  }
  return [...parts, text.slice(from)];
}
