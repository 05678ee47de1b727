"""What a known beginning of a prompt saves: python benchmarks/prefix.py FILE.gw [--rounds 7]

The first token of three prompts, in turns in one process, each of tokens that are new: without a
prefix cache; with one that knows nothing of it; and as the next turn of a conversation, of which
all but the last tokens are known. Then: how far its logits are from those computed anew.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphwright import SamplingParams
from graphwright.runtime.engine import Engine

__all__ = ["compare"]

SAID = 8  # tokens of the answer before


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("artifact")
    parser.add_argument("--prompt", type=int, default=903, help="its tokens")
    parser.add_argument("--known", type=int, default=896, help="of them")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, help="default: the cores")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    engines = [
        Engine(
            options.artifact, max_sequences=2, context=options.prompt + SAID,
            threads=options.threads, prefix_cache=prefix_cache,
        )
        for prefix_cache in (False, True)
    ]  # fmt: skip
    found = compare(*engines, options.prompt, options.known, options.rounds)
    if options.json:
        print(json.dumps(found))
        return
    for name in ("without a cache", "unknown", "known"):
        print(f"{name:18} {1000 * found[name]:9.1f} ms to the first token")
    print(f"the known prompt began at token {found['reused']:.0f}")
    print(f"its logits are off by {found['off']:.2g} of their deviation")


def compare(
    plain: Engine, caching: Engine, length: int, known: int, rounds: int
) -> dict[str, float]:
    """Medians over the rounds, in seconds, after one that is not counted; `reused` tokens of the
    known prompts, and how far their logits are `off` at most, in deviations of these."""
    draw = np.random.default_rng(0)

    def ids(count: int) -> list[int]:
        found: list[int] = draw.integers(0, plain.plan.vocab_size, count).tolist()
        return found

    times: dict[str, list[float]] = {"without a cache": [], "unknown": [], "known": []}
    reused, off = [], []
    for number in range(rounds + 1):
        before = ids(known + 1 - SAID)
        [answer] = caching.generate([before], greedy(SAID))
        prompt = [*before, *answer.token_ids]
        prompt += ids(length - len(prompt))
        each = {
            "without a cache": first_token(plain, ids(length)),
            "unknown": first_token(caching, ids(length)),
            "known": first_token(caching, prompt),
        }
        wanted = first_token(plain, prompt)[2]
        logits = each["known"][2]
        if number:
            for name, (seconds, _, _) in each.items():
                times[name].append(seconds)
            reused.append(each["known"][1])
            off.append(float(np.abs(logits - wanted).max() / wanted.std()))
    medians = {name: statistics.median(each) for name, each in times.items()}
    return {**medians, "reused": statistics.median(reused), "off": max(off)}


def greedy(tokens: int) -> SamplingParams:
    """An answer of so many tokens."""
    return SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)


def first_token(engine: Engine, prompt: list[int]) -> tuple[float, int, NDArray[np.float32]]:
    """(seconds until it is there, tokens that were not computed again, its logits [V])."""
    start = time.perf_counter()
    request: Any = engine._request(prompt, greedy(1), keep_logits=True)
    engine._stepper.add(request)
    while not request.finished:
        engine.step()
    seconds = time.perf_counter() - start
    return seconds, request.sequence.reused, request.output().logits[0]


if __name__ == "__main__":
    main()
