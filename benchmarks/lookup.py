"""What guessed tokens save: python benchmarks/lookup.py FILE.gw [--tokenizer FILE] [--rounds 7]

The same answers with and without `speculate='lookup'`, in turns in one process. The model is taken
to write a given text, whatever it thinks of it: every token is chosen as usual, then replaced by
the text's, so that weights may be random. Three texts are of this repository: a source file with
two names changed behind the file itself, the second half of a page behind the first one, the same
of a source file; a model with a tokenizer also writes what it likes. Then: what steps of several
tokens cost.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from graphwright import SamplingParams
from graphwright.runtime.draws import LARGEST
from graphwright.runtime.engine import Engine
from graphwright.runtime.steps import Chunk, Sequence, Step

ROOT = Path(__file__).resolve().parent.parent
COLUMNS = ("plain", "lookup", "ratio", "tokens a step", "accepted", "guessed")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("artifact")
    parser.add_argument("--tokenizer", type=Path, help="a tokenizer.json (default: the demo's)",
                        default=ROOT / "examples" / "demo-model" / "tokenizer.json")  # fmt: skip
    parser.add_argument("--tokens", type=int, default=200, help="of each answer")
    parser.add_argument("--sequences", type=int, default=1, help="that write at a time")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, help="default: the cores")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    plain, lookup = (
        Engine(
            options.artifact, max_sequences=options.sequences, threads=options.threads,
            prefix_cache=True, speculate=speculate,
        )
        for speculate in (None, "lookup")
    )  # fmt: skip
    found = {
        title: compare(plain, lookup, *each, options.rounds, options.sequences)
        for title, each in answers(plain, options.tokenizer, options.tokens).items()
    }
    costs = step_costs(plain, options.rounds)
    if options.json:
        print(json.dumps({"threads": plain.threads, "answers": found, "step_costs": costs}))
        return
    print(f"{'':28}" + "".join(f"{name:>15}" for name in COLUMNS))
    for title, figures in found.items():
        print(f"{title:28}" + "".join(f"{figures[name]:15,.2f}" for name in COLUMNS))
    print("a step of n tokens, in steps of one: " + json.dumps(costs))


def answers(
    engine: Engine, tokenizer: Path, tokens: int
) -> dict[str, tuple[list[int], list[int] | None, SamplingParams]]:
    """(prompt, the text that is written or None, how tokens are chosen) by title."""
    library = Tokenizer.from_file(str(tokenizer))
    greedy = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)

    def ids(text: str) -> list[int]:
        found: list[int] = library.encode(text, add_special_tokens=False).ids
        return [each % engine.plan.vocab_size for each in found]

    def halves(text: str) -> tuple[list[int], list[int]]:
        both = ids(text)
        middle = min(len(both) // 2, engine.context - tokens - 1)
        return both[:middle], both[middle : middle + tokens]

    source = (ROOT / "runtime" / "scheduler.py").read_text()
    start = ids(source)[: engine.context - tokens - 2]
    changed = re.sub(r"\btokens\b", "ids", re.sub(r"\bsequence\b", "line", source))
    found: dict[str, tuple[list[int], list[int] | None, SamplingParams]] = {
        "a file, two names changed": (start, ids(changed)[:tokens], greedy),
        "a page goes on": (*halves((ROOT / "docs" / "architecture.md").read_text()), greedy),
        "a source file goes on": (*halves(source), greedy),
    }
    if engine.tokenizer is not None:
        prompt = engine.tokenizer.encode("Once upon a time")
        drawn = SamplingParams(temperature=0.8, seed=3, max_tokens=tokens, ignore_eos=True)
        found["its own text, greedy"] = (prompt, None, greedy)
        found["its own text, drawn"] = (prompt, None, drawn)
    return found


class Replaced:
    """A sampler that chooses as `sampler` does, and says what is in `text`."""

    def __init__(self, sampler: Any, text: list[int]) -> None:
        self._sampler, self._text = sampler, iter(text)
        self.takes_largest, self.draw = sampler.takes_largest, sampler.draw

    def choose(self, *arguments: Any) -> int:
        """The next token of the text."""
        self._sampler.choose(*arguments)
        return next(self._text)


def write(
    engine: Engine, prompt: list[int], text: list[int] | None, params: SamplingParams,
    sequences: int = 1,
) -> tuple[float, list[int]]:  # fmt: skip
    """(tokens/s in all behind the first ones, the tokens of the first sequence). Prompts begin with
    different tokens."""
    requests = [engine.submit([number, *prompt], params) for number in range(sequences)]
    for request in requests if text is not None else ():
        request._sampler = Replaced(request._sampler, text or [])  # type: ignore[assignment]
    while not all(request.generated for request in requests):
        engine.step()
    said = sum(len(request.generated) for request in requests)
    start = time.perf_counter()
    while not all(request.finished for request in requests):
        engine.step()
        for request in requests:
            list(request.take_pieces())
    seconds = time.perf_counter() - start
    more = sum(len(request.generated) for request in requests) - said
    return more / seconds, requests[0].generated


def compare(
    plain: Engine, lookup: Engine, prompt: list[int], text: list[int] | None,
    params: SamplingParams, rounds: int, sequences: int = 1,
) -> dict[str, float]:  # fmt: skip
    """Medians over the rounds, after one that is not counted; ratio: of neighbours."""
    rates: list[tuple[float, float]] = []
    before = vars(lookup.statistics).copy()
    for _ in range(rounds + 1):
        (slow, expected), (fast, said) = (
            write(engine, prompt, text, params, sequences) for engine in (plain, lookup)
        )
        assert text is None or said == expected == text[: len(said)]
        rates.append((slow, fast))
    gained = {name: value - before[name] for name, value in vars(lookup.statistics).items()}
    counted = rates[1:]
    return {
        "plain": statistics.median(slow for slow, _ in counted),
        "lookup": statistics.median(fast for _, fast in counted),
        "ratio": statistics.median(fast / slow for slow, fast in counted),
        "tokens a step": gained["decode_tokens"] / gained["turns"],
        "accepted": gained["accepted_tokens"] / (rounds + 1),
        "guessed": gained["drafted_tokens"] / (rounds + 1),
    }


def step_costs(engine: Engine, rounds: int, before: int = 200) -> dict[int, float]:
    """What a step of some tokens of a sequence takes behind `before` others, all rows sampled, in
    steps of one token: medians of neighbours."""
    decode, prefill = (engine.plan.entries[name] for name in ("decode", "prefill"))
    counts = [n for n in (1, 2, 3, 4, 5, 6, 8, 9, 12, 16, 24, 32) if n <= prefill.max_rows]
    ids = np.random.default_rng(0).integers(0, engine.plan.vocab_size, before + counts[-1])
    sequence = Sequence(ids.tolist())
    engine._scheduler.add(sequence)
    while (step := engine._scheduler.next_step()) is not None:
        rows = sum(chunk.rows for chunk in step.chunks)
        engine._stepper.run(step, [LARGEST] * rows, logits=False)
    ratios: dict[int, list[float]] = {count: [] for count in counts}
    for number in range(4 * rounds + 1):
        one = 0.0
        for count in counts:
            entry = "decode" if count <= decode.max_tokens else "prefill"
            step = Step(entry, (Chunk(sequence, before, count, count),))
            start = time.perf_counter()
            engine._stepper.run(step, [LARGEST] * count, logits=False)
            seconds = time.perf_counter() - start
            one = one or seconds
            if number:
                ratios[count].append(seconds / one)
    engine._scheduler.remove(sequence)
    return {count: round(statistics.median(each), 2) for count, each in ratios.items()}


if __name__ == "__main__":
    main()
