// What a pass changed, hunk by hunk.

function deltaView(pass) {
  if (pass.delta === null) {
    return el(
      "p",
      { class: "dim" },
      "The graph before the first pass, as it was traced, is not in the artifact; " +
        "“Graph after it” shows what this pass left.",
    );
  }
  const { removed, added, changed, moved, hunks } = pass.delta;
  if (!(removed || added || changed || moved))
    return el("p", { class: "dim" }, "It left the graph as it was.");
  const counts = [
    ["removed", removed],
    ["added", added],
    ["changed", changed],
    ["moved unchanged", moved],
  ]
    .filter(([, number]) => number)
    .map(([what, number]) => `${whole(number)} ${what}`)
    .join(", ");
  return el(
    "div",
    null,
    el(
      "p",
      { class: "facts" },
      `Nodes and weights: ${counts}. Changes that are equal but for numbers in names ` +
        "are shown once.",
    ),
    hunks.map(([times, rows]) =>
      el(
        "div",
        { class: "hunk" },
        times > 1 ? el("span", { class: "times" }, `× ${times}`) : "",
        el("pre", null, deltaLines(rows)),
      ),
    ),
  );
}

function deltaLines(rows) {
  return rows.map(([sign, text], i) => {
    const kind = { "-": "removed", "+": "added", "<": "before", ">": "after" }[sign] || "same";
    const mark = { "<": "−", ">": "+", "-": "−" }[sign] || sign;
    const other = sign === "<" ? rows[i + 1] : sign === ">" ? rows[i - 1] : null;
    return el(
      "span",
      { class: `line ${kind}` },
      el("i", null, mark),
      el("span", null, other ? differing(text, other[1]) : text),
    );
  });
}

/** The text with what differs from the other one marked, but for names that are numbered anew. */
function differing(text, other) {
  const words = (each) => each.split(/(%[\w.]+|[\w.]+|\s+|.)/).filter((word) => word);
  const stem = (word) => (word.startsWith("%") ? word.replace(/_\d+$/, "") : word);
  const mine = words(text);
  const theirs = words(other);
  let head = 0;
  while (head < mine.length && head < theirs.length && stem(mine[head]) === stem(theirs[head]))
    head += 1;
  let tail = 0;
  while (
    tail < Math.min(mine.length, theirs.length) - head &&
    stem(mine[mine.length - 1 - tail]) === stem(theirs[theirs.length - 1 - tail])
  )
    tail += 1;
  const end = mine.length - tail;
  return [
    mine.slice(0, head).join(""),
    el("mark", null, mine.slice(head, end).join("")),
    mine.slice(end).join(""),
  ];
}
