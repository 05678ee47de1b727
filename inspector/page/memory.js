// The arena of each entry: which buffer lies where from which step to which; and the KV cache.

function renderMemory(data) {
  const chart = el("div");
  const entries = Object.keys(data.memory);
  const show = (entry) => fill(chart, arenaView(data.memory[entry]));
  fill(
    byId("memory"),
    el("h2", null, "Memory"),
    el(
      "p",
      { class: "what" },
      "Everything that a step computes lies in one arena, planned ahead: a rectangle " +
        "is a buffer, as wide as the steps that need it and as high as its bytes. What " +
        "is no longer needed is written over.",
    ),
    choice(
      "Entry",
      entries.map((name) => [name, name]),
      entries[0],
      show,
    ),
    chart,
    el("h3", null, "KV cache"),
    kvView(data),
  );
  show(entries[0]);
}

/** Bytes in use at each step. */
function liveBytes(plan, steps) {
  const live = new Array(steps).fill(0);
  for (const [, , size, first, last] of plan.buffers) {
    for (let step = first; step <= last; step += 1) live[step] += size;
  }
  return live;
}

function isScratch(name) {
  return /\.[^.]*\D[^.]*$/.test(name);
}

function arenaView(plan) {
  const steps = Math.max(
    plan.steps.length,
    1 + Math.max(0, ...plan.buffers.map((each) => each[4])),
  );
  const live = liveBytes(plan, steps);
  const peak = Math.max(...live);
  const at = live.indexOf(peak);
  const whole_ = sum(plan.buffers.map((each) => each[2]));
  const said = el("p", { class: "facts", role: "status" }, "Point at a buffer to see what it is.");
  return el(
    "div",
    null,
    el(
      "p",
      { class: "facts" },
      `${bytesText(plan.arena_bytes)} for up to ${plural(plan.max_tokens, "token")} ` +
        `hold ${plural(plan.buffers.length, "buffer")} of ${bytesText(whole_)} in all. ` +
        `At most ${bytesText(peak)} are in use at once, in step ` +
        `${whole(at)}${plan.steps[at] ? ` (${plan.steps[at]})` : ""}: ` +
        `${shareText(plan.arena_bytes ? 1 - peak / plan.arena_bytes : 0)} of the arena ` +
        "is lost to gaps.",
    ),
    el("div", { class: "scroll" }, arenaChart(plan, steps, at, said)),
    said,
    el(
      "p",
      { class: "legend" },
      el("span", null, el("i", { class: "part result" }), "results of nodes"),
      el("span", null, el("i", { class: "part scratch" }), "scratch beside them"),
      el("span", null, el("i", { class: "part peak" }), "where most is in use"),
    ),
  );
}

function arenaChart(plan, steps, at, said) {
  const [left, top, height, bottom] = [64, 6, 300, 24];
  const wide = Math.max(3, Math.min(18, 900 / steps));
  const width = left + wide * steps + 8;
  const total = Math.max(1, plan.arena_bytes);
  const y = (offset) => top + (height * offset) / total;
  const rects = plan.buffers.map((buffer) => {
    const [name, offset, size, first, last] = buffer;
    const text = `${name}: ${whole(size)} bytes at ${whole(offset)}, steps ${first} to ${last}`;
    const tell = () => {
      said.textContent =
        text +
        (plan.steps[first] && plan.steps[last]
          ? ` (${plan.steps[first]} to ${plan.steps[last]})`
          : "");
    };
    return svgEl(
      "rect",
      {
        x: left + wide * first,
        y: y(offset),
        width: wide * (last - first + 1),
        height: Math.max(0.75, (height * size) / total),
        class: `buffer ${isScratch(name) ? "scratch" : "result"}`,
        onmouseenter: tell,
        onclick: tell,
      },
      svgEl("title", null, text),
    );
  });
  const marks = [0, 0.25, 0.5, 0.75, 1].map((share) => [
    svgEl(
      "text",
      { x: left - 6, y: y(share * total) + 4, class: "tick end" },
      bytesText(share * total),
    ),
    svgEl("line", {
      x1: left,
      x2: width - 8,
      y1: y(share * total),
      y2: y(share * total),
      class: "grid",
    }),
  ]);
  const every = Math.max(1, Math.ceil(steps / 12));
  const numbers = [];
  for (let step = 0; step < steps; step += every)
    numbers.push(
      svgEl(
        "text",
        { x: left + wide * (step + 0.5), y: top + height + 16, class: "tick middle" },
        String(step),
      ),
    );
  return svgEl(
    "svg",
    {
      width,
      height: top + height + bottom,
      viewBox: `0 0 ${width} ${top + height + bottom}`,
      class: "arena",
      role: "img",
      "aria-label": "Memory plan: steps to the right, offsets downwards",
    },
    marks,
    svgEl("text", { x: left - 6, y: top + height + 16, class: "tick end" }, "step"),
    svgEl("rect", { x: left + wide * at, y: top, width: wide, height, class: "peak" }),
    rects,
    numbers,
  );
}
