"""For runtimes that generate by themselves and only report each token: no step that can be paused.

`Streamed` measures a whole generation each time, which `protocol.serve` drives through `run`.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

from protocol import FIRST_TOKEN, peak_rss_mb, prompt_tokens

__all__ = ["serve_streamed"]

Generate = Callable[[list[int], int], list[float]]


def serve_streamed(load: Callable[[], tuple[Generate, int, int | None]], version: str) -> None:
    """Answers as protocol.serve does.

    load: gives (generate, size of the vocabulary, weight bytes a token); generate(prompt, count)
    runs to the end and gives the clock at each new token.
    """
    answers = sys.stdout
    sys.stdout = sys.stderr

    def answer(**fields: Any) -> None:
        print(json.dumps(fields), file=answers, flush=True)

    start = time.perf_counter()
    generate, vocab, weight_bytes = load()
    seconds = time.perf_counter() - start
    if FIRST_TOKEN in os.environ:
        generate(prompt_tokens(int(os.environ[FIRST_TOKEN]), vocab), 1)
        answer(load_s=seconds, total_s=time.perf_counter() - start)
        return
    answer(ready=True, load_s=round(seconds, 3), version=version, weight_bytes=weight_bytes)
    for number, line in enumerate(sys.stdin):
        command = json.loads(line)
        if command["op"] == "quit":
            break
        prompt = prompt_tokens(command["prompt"], vocab, number)  # which none remembers
        start = time.perf_counter()
        if command["op"] == "prefill":
            tps = len(prompt) / (generate(prompt, 1)[0] - start)
        elif command["op"] == "decode":
            times = generate(prompt, command["tokens"] + 2)  # the first step is not typical
            tps = command["tokens"] / (times[-1] - times[1])
        else:
            raise SystemExit(f"this runtime is not asked for '{command['op']}'.")
        answer(tps=tps, peak_rss_mb=peak_rss_mb())
