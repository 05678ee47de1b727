// The roofline as its authors draw it: S. Williams, A. Waterman, D. Patterson, Roofline: an
// insightful visual performance model (2009).

/** Operations a second over intensity, both logarithmic: each kernel where its bound puts it. */
function rooflineChart(state, phases) {
  const [width, height, left, bottom] = [560, 300, 52, 34];
  const machine = state.machine;
  const top = Math.max(machine.float32, machine.int8) * 2;
  const low = Math.min(machine.bandwidth * 0.01, top / 1e4);
  const [least, most] = [0.01, Math.max(1000, (top / machine.bandwidth) * 4)];
  const x = (intensity) =>
    left +
    ((width - left - 20) * Math.log(Math.min(Math.max(intensity, least), most) / least)) /
      Math.log(most / least);
  const y = (rate) =>
    height -
    bottom -
    ((height - bottom - 10) * Math.log(Math.max(rate, low) / low)) / Math.log(top / low);
  const line = (points, kind) =>
    svgEl("polyline", { points: points.map(([a, b]) => `${x(a)},${y(b)}`).join(" "), class: kind });
  const roof = (ceiling, kind) =>
    line(
      [
        [least, least * machine.bandwidth],
        [ceiling / machine.bandwidth, ceiling],
        [most, ceiling],
      ],
      kind,
    );
  const ticks = [];
  for (let power = -2; 10 ** power <= most; power += 1) {
    ticks.push(
      svgEl(
        "text",
        { x: x(10 ** power), y: height - bottom + 16, class: "tick middle" },
        significant(10 ** power),
      ),
    );
  }
  for (let power = Math.ceil(Math.log10(low)); 10 ** power <= top; power += 1) {
    ticks.push(
      svgEl(
        "text",
        { x: left - 6, y: y(10 ** power) + 4, class: "tick end" },
        significant(10 ** power),
      ),
    );
    ticks.push(
      svgEl("line", {
        x1: left,
        x2: width - 20,
        y1: y(10 ** power),
        y2: y(10 ** power),
        class: "grid",
      }),
    );
  }
  const groups = grouped(phases).filter((each) => each.bytes && each.operations);
  const total = sum(groups.map((each) => each.seconds)) || 1;
  const dots = groups.map((each) => {
    const bound = each.bounds.size === 1 ? [...each.bounds][0] : "both";
    const said =
      `${each.kernel}: ${significant(each.operations / each.bytes)} op/byte, ` +
      `${timeText(each.seconds)} in ${plural(each.calls, "call")}`;
    return svgEl(
      "circle",
      {
        cx: x(each.operations / each.bytes),
        cy: y(each.operations / each.seconds / 1e9),
        r: 3 + 14 * Math.sqrt(each.seconds / total),
        class: `dot ${bound}`,
      },
      svgEl("title", null, said),
    );
  });
  return el(
    "figure",
    null,
    svgEl(
      "svg",
      {
        viewBox: `0 0 ${width} ${height}`,
        role: "img",
        "aria-label": "Roofline: operations a second over operations for each byte",
      },
      ticks,
      roof(machine.float32, "roof"),
      roof(machine.int8, "roof int8"),
      svgEl(
        "text",
        { x: width - 22, y: y(machine.float32) - 5, class: "tick end" },
        `float32 ${significant(machine.float32)} GFLOP/s`,
      ),
      machine.int8 === machine.float32
        ? []
        : svgEl(
            "text",
            { x: width - 22, y: y(machine.int8) - 5, class: "tick end" },
            `int8 ${significant(machine.int8)} GOP/s`,
          ),
      dots,
      svgEl(
        "text",
        { x: (left + width) / 2, y: height - 3, class: "tick middle" },
        "operations for each byte",
      ),
    ),
    el(
      "figcaption",
      null,
      "Each kernel under its roof, in 10⁹ operations a second; the larger the dot, " +
        "the more of the predicted time. Left of the bend memory bounds it, right of " +
        "it arithmetic.",
    ),
  );
}
