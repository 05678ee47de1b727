"""What a benchmark worker is: a process that loads one model and then obeys lines of JSON.

Commands on stdin, one line each; `tps` of an answer is tokens/s, of all sequences together:

    {"op": "decode", "prompt": 128, "tokens": 16}                  one sequence
    {"op": "batch", "sequences": 8, "prompt": 128, "tokens": 8}    several, all in each step
    {"op": "prefill", "prompt": 512}
    {"op": "quit"}

Decoding goes on where the last command left it, for as long as no more than SPAN tokens are
generated after the prompt; then, and whenever something else ran, the prompt is read again,
untimed. So all runtimes decode at the same positions. With FIRST_TOKEN in the environment a worker
reads a prompt of that many tokens as soon as it can, says so, and ends.

Only the standard library is used here: each worker runs in its own environment.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

__all__ = ["FIRST_TOKEN", "SPAN", "BatchModel", "Model", "peak_rss_mb", "prompt_tokens", "serve"]

SPAN = 256
FIRST_TOKEN = "GRAPHWRIGHT_BENCH_FIRST_TOKEN"


class Model(Protocol):
    """One loaded model. Both methods return the next token, greedily."""

    def prefill(self, tokens: Sequence[int]) -> int:
        """Forgets everything, reads `tokens`."""
        ...

    def step(self, token: int) -> int:
        """Reads one more token."""
        ...


class BatchModel(Model, Protocol):
    """A model that also takes several sequences."""

    def prefill_batch(self, prompts: Sequence[Sequence[int]]) -> list[int]:
        """Forgets everything, reads the prompts; the next token of each."""
        ...

    def step_batch(self, tokens: Sequence[int]) -> list[int]:
        """Reads one more token of each sequence."""
        ...


def prompt_tokens(length: int, vocab: int, number: int = 0) -> list[int]:
    """A fixed prompt of `length` ids; others for other numbers."""
    return [(7919 * (i + 3 + 131 * number) + 11) % vocab for i in range(length)]


def peak_rss_mb() -> int:
    """Most resident memory so far. Not getrusage's figure: that one remembers the parent's."""
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) // 1024 for line in lines if line.startswith("VmHWM"))


def serve(
    load: Callable[[], tuple[Any, int]], version: str, weight_bytes: Callable[[Any], int | None]
) -> None:
    """Answers commands until `quit` or the end of stdin.

    load: gives (model, size of the vocabulary). weight_bytes(model): bytes of weights that decoding
    one token reads, where that is known.
    """
    answers = sys.stdout
    sys.stdout = sys.stderr

    def answer(**fields: object) -> None:
        print(json.dumps(fields), file=answers, flush=True)

    start = time.perf_counter()
    model, vocab = load()
    seconds = time.perf_counter() - start
    if FIRST_TOKEN in os.environ:
        token = model.prefill(prompt_tokens(int(os.environ[FIRST_TOKEN]), vocab))
        answer(token=token, load_s=seconds, total_s=time.perf_counter() - start)
        return
    answer(ready=True, load_s=round(seconds, 3), version=version, weight_bytes=weight_bytes(model))
    session = _Session(model, vocab)
    for line in sys.stdin:
        command = json.loads(line)
        if command["op"] == "quit":
            break
        tps = session.run(**command)
        answer(tps=tps, peak_rss_mb=peak_rss_mb())


class _Session:
    """What the model has read, so that decoding can go on."""

    def __init__(self, model: Any, vocab: int) -> None:
        self._model = model
        self._vocab = vocab
        self._known: tuple[int, int] | None = None  # (sequences, prompt) that it has read
        self._generated = 0
        self._tokens: list[int] = []

    def run(self, op: str, prompt: int, tokens: int = 0, sequences: int = 1) -> float:
        """Tokens per second of one command."""
        if op == "prefill":
            self._known = None
            ids = prompt_tokens(prompt, self._vocab)
            start = time.perf_counter()
            self._model.prefill(ids)
            return prompt / (time.perf_counter() - start)
        wanted = (sequences if op == "batch" else 0, prompt)
        if self._known != wanted or self._generated + tokens > SPAN:
            self._read(op, prompt, sequences)
            self._known, self._generated = wanted, 0
        self._generated += tokens
        if op == "batch":
            start = time.perf_counter()
            for _ in range(tokens):
                self._tokens = self._model.step_batch(self._tokens)
            return sequences * tokens / (time.perf_counter() - start)
        token = self._tokens[0]
        start = time.perf_counter()
        for _ in range(tokens):
            token = self._model.step(token)
        seconds = time.perf_counter() - start
        self._tokens = [token]
        return tokens / seconds

    def _read(self, op: str, prompt: int, sequences: int) -> None:
        if op == "batch":
            prompts = [prompt_tokens(prompt, self._vocab, n) for n in range(sequences)]
            self._tokens = self._model.prefill_batch(prompts)
            self._tokens = self._model.step_batch(self._tokens)  # untimed: the first is not typical
        else:
            self._tokens = [self._model.prefill(prompt_tokens(prompt, self._vocab))]
            self._tokens = [self._model.step(self._tokens[0])]
