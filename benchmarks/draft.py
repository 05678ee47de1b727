"""What a draft model saves: python benchmarks/draft.py FILE.gw DRAFT.gw [--rounds 5]

The same answers with and without `speculate='draft:…'`, in turns in one process, greedy and drawn,
by the draft as it is, and by one that is always wrong: its logits are turned by one token. Then:
what a guess costs, in steps of the model. make_draft.py makes a pair that agrees.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
from lookup import write

from graphwright import SamplingParams
from graphwright.runtime.engine import Engine
from graphwright.runtime.steps import Sequence

COLUMNS = ("plain", "draft", "ratio", "tokens a step", "accepted", "guessed", "draft share")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("artifact")
    parser.add_argument("draft")
    parser.add_argument("--tokens", type=int, default=150, help="of each answer")
    parser.add_argument("--prompt", type=int, default=64, help="random tokens before it")
    parser.add_argument("--text", help="instead: a prompt")
    parser.add_argument("--sequences", type=int, default=1, help="that write at a time")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, help="default: the cores")
    parser.add_argument("--json", type=Path, metavar="OUT")
    options = parser.parse_args()
    plain, guessing, wrong = (
        Engine(options.artifact, max_sequences=options.sequences, threads=options.threads,
               speculate=speculate)
        for speculate in (None, f"draft:{options.draft}", f"draft:{options.draft}")
    )  # fmt: skip
    turn_guesses(wrong)
    prompt = np.random.default_rng(0).integers(0, plain.plan.vocab_size, options.prompt).tolist()
    if options.text:
        assert plain.tokenizer is not None, "the artifact has no tokenizer"
        prompt = plain.tokenizer.encode(options.text)
    rules: dict[str, Any] = {
        "greedy": {"temperature": 0}, "drawn, 0.8": {"temperature": 0.8, "seed": 3},
    }  # fmt: skip
    found = {}
    for title, rule in rules.items():
        params = SamplingParams(**rule, max_tokens=options.tokens, ignore_eos=True)
        each = compare([plain, guessing, wrong], prompt, params, options.rounds, options.sequences)
        found[title], found[f"{title}, always wrong"] = each
    cost = guess_cost(plain, guessing, prompt, options.rounds)
    if options.json:
        options.json.write_text(json.dumps({"answers": found, "guess": cost}))
    print(f"{'':26}" + "".join(f"{name:>15}" for name in COLUMNS))
    for title, figures in found.items():
        print(f"{title:26}" + "".join(f"{figures[name]:15,.2f}" for name in COLUMNS))
    print(f"a guess takes {cost['measured']:.3f} of a step, by its bytes {cost['taken']:.3f}")


def turn_guesses(engine: Engine) -> None:
    """From now on the draft is wrong, and costs what it did."""
    draft = engine.draft
    assert draft is not None
    guess = draft.guess
    draft.guess = lambda followers: [np.roll(row, 1) for row in guess(followers)]  # type: ignore[method-assign]


def compare(
    engines: list[Engine], prompt: list[int], params: SamplingParams, rounds: int, sequences: int
) -> list[dict[str, float]]:
    """Of each engine but the first, beside that: medians over the rounds, after one that is not
    counted; ratio: of neighbours."""
    rates: list[list[float]] = []
    before = [vars(engine.statistics).copy() for engine in engines]
    for turn in range(rounds + 1):
        order = range(len(engines)) if turn % 2 else reversed(range(len(engines)))
        rate = {n: write(engines[n], prompt, None, params, sequences)[0] for n in order}
        rates.append([rate[n] for n in range(len(engines))])
    found = []
    for number, engine in enumerate(engines[1:], 1):
        now = vars(engine.statistics)
        gained = {name: now[name] - before[number][name] for name in now}
        found.append({
            "plain": statistics.median(each[0] for each in rates[1:]),
            "draft": statistics.median(each[number] for each in rates[1:]),
            "ratio": statistics.median(each[number] / each[0] for each in rates[1:]),
            "tokens a step": gained["decode_tokens"] / gained["turns"],
            "accepted": gained["accepted_tokens"] / (rounds + 1),
            "guessed": gained["drafted_tokens"] / (rounds + 1),
            "draft share": gained["draft_seconds"] / gained["decode_seconds"],
        })  # fmt: skip
    return found


def guess_cost(plain: Engine, guessing: Engine, prompt: list[int], rounds: int) -> dict[str, float]:
    """What a guess behind the prompt takes beside a step of the model of one token: measured, as
    the median of neighbours, and as the rule takes it."""
    from graphwright.runtime.draft_worth import Costs
    from graphwright.runtime.step_cost import StepCost

    draft, ratios = guessing.draft, []
    assert draft is not None
    sequence = Sequence([*prompt, 1])
    follower = draft.follow(sequence)
    params = SamplingParams(temperature=0, max_tokens=8 * rounds + 8, ignore_eos=True)
    request = plain.submit(prompt, params)
    while not request.generated:
        plain.step()
    draft.read([follower])
    for _ in range(8 * rounds):
        start = time.perf_counter()
        (row,) = draft.guess([follower])
        np.exp(row - row.max()).sum()
        middle = time.perf_counter()
        plain.step()
        ratios.append((middle - start) / (time.perf_counter() - middle))
        sequence.tokens.append(int(row.argmax()))
        draft.follow(sequence)
    plain.cancel(request)
    draft.forget(sequence)
    model = StepCost.of(plain.plan)
    costs = Costs(model, draft.cost, len(prompt))
    return {
        "measured": statistics.median(ratios),
        "taken": costs.guess(1) / model.step(1, len(prompt)),
    }


if __name__ == "__main__":
    main()
