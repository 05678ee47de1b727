// The states that sequences keep, and what they cost.

const KV_COLUMNS = [
  ["state", "code"],
  ["heads", "number"],
  ["keys", "number", "numbers of a key of one head"],
  ["values", "number"],
  ["kept as", "code"],
  ["mask", "code"],
  ["bytes a token", "number"],
  ["read again", ""],
];

function kvView(data) {
  const kv = data.kv;
  const groups = new Map();
  for (const each of kv.states) {
    const facts = [
      each.heads,
      each.head_dim,
      each.value_dim,
      each.dtype,
      each.mask,
      each.span,
      each.chosen,
      each.bytes_per_token,
      each.pool,
    ];
    const key = JSON.stringify(facts);
    groups.set(key, [...(groups.get(key) || []), each]);
  }
  const rows = [...groups.values()].map((group) => {
    const each = group[0];
    const name =
      group.length === 1
        ? each.name
        : `${each.name} … ${group[group.length - 1].name} (×${group.length})`;
    const all = each.chosen ? `${whole(each.chosen)} chosen ones` : "every position";
    const last = each.span === null ? all : `the last ${whole(each.span)}`;
    const span = each.pool === undefined ? last : `${last}, in pool ${each.pool}`;
    return el(
      "tr",
      null,
      cells(KV_COLUMNS, [
        name,
        each.heads,
        each.head_dim,
        each.value_dim,
        each.dtype,
        each.mask,
        each.bytes_per_token === undefined ? "–" : bytesText(each.bytes_per_token * group.length),
        span,
      ]),
    );
  });
  return el(
    "div",
    null,
    el(
      "p",
      { class: "facts" },
      kv.pools
        ? `Blocks of ${kv.block_size} positions in ${kv.pools.length} pools: ` +
            `${kv.pools.map(poolText).join("; ")}.`
        : `Blocks of ${kv.block_size} positions; a block holds them for all layers: ` +
            `${bytesText(kv.block_bytes)}.`,
    ),
    kv.states.length
      ? table(KV_COLUMNS, rows, "kv")
      : el("p", { class: "dim" }, "The model keeps no keys and values."),
    otherStates(
      "Index keys, by which tokens choose the others that they attend to",
      kv.indexes,
      (each) =>
        `${each.name}: ${plural(each.heads, "head")} of ${each.head_dim}, ${each.dtype}, ` +
        `${bytesText(each.bytes_per_token)} a token`,
    ),
    otherStates(
      "Rolling states, in a sequence’s first block",
      kv.rolling,
      (each) =>
        `${each.name}: the last ${each.kept} inputs of ${each.channels} channels, ${each.dtype}`,
    ),
    otherStates(
      `Recurrent states, ${bytesText(kv.slot_bytes || 0)} a sequence`,
      kv.recurrent,
      (each) => `${each.name}: ${whole(each.size)} numbers, float32`,
    ),
    kvCalculator(data),
  );
}

function poolText(pool, number) {
  const kept = pool.reach
    ? `of a sequence the last ${whole(pool.reach.span)} positions are kept` +
      (pool.reach.first ? `, and the first ${whole(pool.reach.first)}` : "")
    : "all of a sequence are kept";
  return `${number}, of ${bytesText(pool.block_bytes)} each, ${kept}`;
}

function otherStates(title, states, describe) {
  if (!states || !states.length) return "";
  return el(
    "details",
    null,
    el("summary", null, `${title}: ${states.length}`),
    el(
      "ul",
      null,
      states.map((each) => el("li", null, describe(each))),
    ),
  );
}

/** What so many sequences of so many tokens hold; whole blocks are taken, and in a pool with a
 * reach as many as lie in it at the most. */
function kvBytes(kv, sequences, tokens) {
  const blocks = (count) => Math.ceil(count / kv.block_size);
  const held = (reach) => (reach ? blocks(reach.first) + blocks(reach.span - 1) + 2 : Infinity);
  const pools = (kv.pools || [kv]).map(
    (pool) => Math.min(blocks(tokens), held(pool.reach)) * pool.block_bytes,
  );
  return sequences * (pools.reduce((sum, size) => sum + size, 0) + (kv.slot_bytes || 0));
}

function kvCalculator(data) {
  const context = data.max_context === null ? 1 << 20 : data.max_context;
  const chosen = { tokens: Math.min(1024, context), sequences: 1 };
  const said = el("p", { class: "answer", id: "kv-answer", role: "status" });
  const draw = () => {
    const size = kvBytes(data.kv, chosen.sequences, chosen.tokens);
    fill(
      said,
      el("b", null, bytesText(size)),
      ` for ${plural(chosen.sequences, "sequence")} of ` +
        `${plural(chosen.tokens, "token")}: ` +
        `${significant(data.weights.bytes ? size / data.weights.bytes : 0)} × the ` +
        "weights.",
    );
  };
  draw();
  return el(
    "div",
    { class: "load" },
    el(
      "div",
      { class: "settings" },
      slider("tokens of a sequence", "tokens", [1, context], chosen.tokens, (value) => {
        chosen.tokens = value;
        draw();
      }),
      slider("sequences", "at once", [1, 1024], chosen.sequences, (value) => {
        chosen.sequences = value;
        draw();
      }),
    ),
    said,
  );
}
