// What a step should take: bytes and operations of each phase, and the bound between them. The
// formulas of inspector/roofline.py; a test holds both against each other.

/** Bytes of a phase under a load {tokens, before, sampled}, by what they are. */
function partsOf(facts, load) {
  const rows = facts.rows === "T" ? load.tokens : load.sampled;
  const lookedUp = Math.min(facts.weight_bytes_per_row * rows, facts.lookup_bytes);
  const most = facts.most_positions || Infinity;
  return {
    weights: facts.weight_bytes + lookedUp,
    activations: facts.bytes_per_row * rows,
    cache: facts.bytes_per_position * Math.min(load.before + load.tokens, most * load.tokens),
    states: facts.bytes_per_sequence || 0,
  };
}

/** Of a token and a position that it attends to, which are not more than `most` of one token. */
function pairsOf(load, most) {
  const allOf = Math.min(Math.max(most - load.before, 0), load.tokens);
  const more = load.tokens > allOf ? (load.tokens - allOf) * most : 0;
  return allOf * load.before + (allOf * (allOf + 1)) / 2 + more;
}

/** [bytes, operations] of a phase. */
function loadOf(facts, load) {
  const rows = facts.rows === "T" ? load.tokens : load.sampled;
  const pairs = pairsOf(load, facts.most_positions || Infinity);
  const parts = partsOf(facts, load);
  return [
    parts.weights + parts.activations + parts.cache + parts.states,
    facts.operations_per_row * rows + facts.operations_per_position * pairs,
  ];
}

/** Every phase under one load: bytes, operations, seconds, and which bound is the larger one. */
function predict(phases, load, machine) {
  return phases.map((facts) => {
    const [bytes, operations] = loadOf(facts, load);
    const ceiling = facts.arithmetic === "int8" ? machine.int8 : machine.float32;
    const memory = bytes / machine.bandwidth / 1e9;
    const compute = operations / ceiling / 1e9;
    const bound = memory >= compute ? "memory" : "compute";
    return { bytes, operations, seconds: Math.max(memory, compute), bound };
  });
}
