// What the reader sets: the step (how many tokens, after how many others) and the machine. Parts of
// the page that depend on it listen.

function loadState(data) {
  const listeners = [];
  const context = data.max_context === null ? 1 << 20 : data.max_context;
  const prefill = (data.memory.prefill || { max_tokens: 512 }).max_tokens;
  const state = {
    entry: "decode",
    loads: {
      decode: { tokens: 1, before: Math.min(128, context - 1), sampled: 1 },
      prefill: { tokens: Math.min(512, prefill, context), before: 0, sampled: 1 },
    },
    machine: { ...data.machine },
    changed() {
      listeners.forEach((each) => each());
    },
    listen(listener) {
      listeners.push(listener);
      listener();
    },
  };
  return state;
}

/** Predictions for the phases of the entry: for each step a list. */
function predictEntry(data, state) {
  const entry = data.entries[state.entry];
  const distinct = predict(entry.facts, state.loads[state.entry], state.machine);
  return entry.phases.map((numbers) => numbers.map((number) => distinct[number]));
}

function hasFacts(data) {
  return Object.values(data.entries).some((entry) => entry.facts.length > 0);
}

/** A range on a logarithmic scale, and the number beside it, which is kept within `low`, `high`. */
function slider(label, unit, [low, high], value, pick, integers = true) {
  const id = `set-${label.replace(/\W+/g, "-").toLowerCase()}`;
  const shift = low === 0 ? 1 : 0;
  const toPlace = (number) =>
    (1000 * Math.log((number + shift) / (low + shift))) / Math.log((high + shift) / (low + shift));
  const fromPlace = (place) =>
    (low + shift) * ((high + shift) / (low + shift)) ** (place / 1000) - shift;
  const kept = (number) => Math.min(high, Math.max(low, integers ? Math.round(number) : number));
  const range = el("input", {
    type: "range",
    min: 0,
    max: 1000,
    step: 1,
    value: toPlace(value),
    "aria-label": label,
    disabled: low === high,
  });
  const number = el("input", {
    type: "number",
    id,
    min: low,
    max: high,
    step: integers ? 1 : "any",
    value,
  });
  range.addEventListener("input", () => {
    const chosen = kept(Number(fromPlace(Number(range.value)).toPrecision(3)));
    number.value = chosen;
    pick(chosen);
  });
  number.addEventListener("change", () => {
    const typed = Number(number.value);
    const chosen = number.value === "" || !Number.isFinite(typed) ? value : kept(typed);
    number.value = chosen;
    range.value = toPlace(chosen);
    pick(chosen);
  });
  return el(
    "div",
    { class: "setting" },
    el("label", { for: id }, label),
    range,
    number,
    el("span", { class: "dim" }, unit),
  );
}

function loadControls(data, state) {
  const box = el("div", { class: "settings" });
  const draw = () => {
    const load = state.loads[state.entry];
    const most = data.memory[state.entry].max_tokens;
    const context = data.max_context === null ? 1 << 20 : data.max_context;
    const set = (target, key) => (value) => {
      target[key] = value;
      state.changed();
    };
    fill(
      box,
      slider(
        "tokens of the step",
        `up to ${whole(most)}`,
        [1, Math.min(most, context)],
        load.tokens,
        set(load, "tokens"),
      ),
      slider(
        "tokens before them",
        `context ${whole(context)}`,
        [0, context - 1],
        load.before,
        set(load, "before"),
      ),
      slider(
        "memory",
        "GB/s",
        [1, 10000],
        state.machine.bandwidth,
        set(state.machine, "bandwidth"),
        false,
      ),
      slider(
        "float32",
        "GFLOP/s",
        [1, 1000000],
        state.machine.float32,
        set(state.machine, "float32"),
        false,
      ),
      slider("int8", "GOP/s", [1, 1000000], state.machine.int8, set(state.machine, "int8"), false),
    );
  };
  draw();
  const entries = Object.keys(data.entries).map((name) => [name, name]);
  return el(
    "div",
    { class: "load" },
    choice("Entry", entries, state.entry, (entry) => {
      state.entry = entry;
      draw();
      state.changed();
    }),
    box,
  );
}
