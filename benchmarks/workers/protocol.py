"""What a benchmark worker is: a process that loads one model and then obeys lines of JSON.

Commands on stdin: {"op": "decode", "prompt": 128, "tokens": 16} -> prefill (untimed), then decode;
{"op": "prefill", "prompt": 512}; {"op": "quit"}. Each answer is one line: {"tps": …}.
Only the standard library is used here: each worker runs in its own environment.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Sequence
from typing import Protocol

__all__ = ["Model", "prompt_tokens", "serve"]


class Model(Protocol):
    """One loaded model. Both methods return the next token, greedily."""

    def prefill(self, tokens: Sequence[int]) -> int:
        """Forgets everything, reads `tokens`."""
        ...

    def step(self, token: int) -> int:
        """Reads one more token."""
        ...


def prompt_tokens(length: int, vocab: int) -> list[int]:
    """A fixed prompt of `length` ids."""
    return [(7919 * (i + 3) + 11) % vocab for i in range(length)]


def serve(model: Model, vocab: int, load_seconds: float, version: str) -> None:
    """Answers commands until `quit` or the end of stdin."""
    answers = sys.stdout
    sys.stdout = sys.stderr

    def answer(**fields: object) -> None:
        print(json.dumps(fields), file=answers, flush=True)

    answer(ready=True, load_s=round(load_seconds, 3), version=version)
    for line in sys.stdin:
        command = json.loads(line)
        if command["op"] == "quit":
            break
        prompt = prompt_tokens(command["prompt"], vocab)
        start = time.perf_counter()
        token = model.prefill(prompt)
        middle = time.perf_counter()
        if command["op"] == "decode":
            for _ in range(command["tokens"]):
                token = model.step(token)
            tps = command["tokens"] / (time.perf_counter() - middle)
        else:
            tps = len(prompt) / (middle - start)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        answer(tps=tps, peak_rss_mb=round(peak))
