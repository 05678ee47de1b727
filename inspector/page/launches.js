// For GPUs: what a captured graph of each bucket launches, and what the kernels take of the chip.

function renderLaunches(data) {
  const gpu = data.gpu;
  const body = el("div");
  const options = Object.entries(gpu.entries).flatMap(([entry, buckets]) =>
    buckets.map((bucket, i) => [`${entry} ${i}`, `${entry} ${whole(bucket.tokens)}`]),
  );
  const chip = gpu.chips[0];
  const show = (value) => {
    const [entry, number] = value.split(" ");
    fill(body, bucketView(gpu, chip, gpu.entries[entry][Number(number)]));
  };
  fill(
    byId("cost"),
    el("h2", null, "Launches"),
    el(
      "p",
      { class: "what" },
      "A step is a list of kernel launches, captured once for each bucket: the step " +
        "takes the smallest one that holds its tokens. Registers, shared memory and " +
        "stack are what the compiler says of the machine code for " +
        `${gpu.chips.join(", ")}; nothing here is predicted or measured.`,
    ),
    choice("Bucket", options, options[0] ? options[0][0] : "", show),
    body,
    el("h3", null, "Kernels"),
    gpuKernels(gpu),
    Object.keys(gpu.sources).length ? el("h3", null, "Generated sources") : "",
    Object.entries(gpu.sources).map(([name, source]) =>
      el(
        "details",
        { class: "source", id: `source-${name}` },
        el("summary", { class: "code" }, name),
        el("pre", null, source),
      ),
    ),
  );
  if (options[0]) show(options[0][0]);
}

const LAUNCH_COLUMNS = [
  ["", "number"],
  ["kernel", "code"],
  ["grid", "code"],
  ["programs", "number"],
  ["threads each", "number"],
  ["registers", "number", "of each thread"],
  ["shared", "number", "memory of each program"],
  ["given", "code", "the regions of memory that it reads and writes"],
];

function bucketView(gpu, chip, bucket) {
  const rows = bucket.launches.map((number, i) => {
    const [kernel, grid, regions] = gpu.launches[number];
    const facts = gpu.kernels[chip][kernel] || {};
    return el(
      "tr",
      null,
      cells(LAUNCH_COLUMNS, [
        String(i + 1),
        kernel,
        grid.join(" × "),
        whole(grid.reduce((a, b) => a * b, 1)),
        facts.warps ? whole(32 * facts.warps) : "–",
        facts.registers ?? "–",
        facts.shared === undefined ? "–" : bytesText(facts.shared),
        regions.join(", "),
      ]),
    );
  });
  const extra = [
    ["largest", "greedy tokens are chosen"],
    ["drawn", "tokens are drawn"],
  ]
    .filter(([kind]) => bucket[kind].length)
    .map(([kind, when]) => `${bucket[kind].length} more where ${when}`);
  return el(
    "div",
    null,
    el(
      "p",
      { class: "facts" },
      `Up to ${plural(bucket.tokens, "token")}, ${plural(bucket.rows, "row")} ` +
        "sampled: " +
        `${[plural(bucket.launches.length, "launch", "launches"), ...extra].join("; ")}.`,
    ),
    el("div", { class: "tall" }, table(LAUNCH_COLUMNS, rows, "launches")),
  );
}

const GPU_COLUMNS = [
  ["kernel", "code"],
  ["function", "code"],
  ["chip", ""],
  ["warps", "number"],
  ["registers", "number"],
  ["shared", "number"],
  ["stack", "number", "bytes a thread keeps in slow memory: 0 is good"],
  ["early", "", "may begin before the launches in front of it have ended"],
  ["cubin", "number"],
];

function gpuKernels(gpu) {
  const rows = Object.entries(gpu.kernels).flatMap(([chip, kernels]) =>
    Object.entries(kernels).map(([name, each]) => {
      const source = gpu.sources[name] ? el("a", { href: `#source-${name}` }, name) : name;
      return el(
        "tr",
        null,
        cells(GPU_COLUMNS, [
          source,
          each.symbol ?? "–",
          chip,
          each.warps ?? "–",
          each.registers ?? "–",
          each.shared === undefined ? "–" : bytesText(each.shared),
          each.stack === undefined ? "–" : bytesText(each.stack),
          each.early ? "yes" : "",
          each.cubin === null ? "–" : bytesText(each.cubin),
        ]),
      );
    }),
  );
  return el("div", { class: "tall" }, table(GPU_COLUMNS, rows, "gpu-kernels"));
}
