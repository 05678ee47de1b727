"""An artifact run by the engine; greedy.

graphwright_worker.py ARTIFACT THREADS CONTEXT SEQUENCES
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from protocol import serve

import graphwright
from graphwright.runtime.engine import Engine
from graphwright.runtime.request import Request
from graphwright.runtime.sampling_params import SamplingParams


class Graphwright:
    """One artifact in one engine; the engine itself feeds back its tokens."""

    def __init__(self, path: str, threads: int, context: int, sequences: int) -> None:
        self.engine = Engine(path, max_sequences=sequences, context=context, threads=threads)
        self.requests: list[Request] = []

    def prefill_batch(self, prompts: Sequence[Sequence[int]]) -> list[int]:
        """See BatchModel."""
        for request in self.requests:
            self.engine.cancel(request)
        self.requests = []
        for prompt in prompts:
            room = self.engine.context - len(prompt)
            params = SamplingParams(temperature=0.0, max_tokens=room, ignore_eos=True)
            self.requests.append(self.engine.submit(list(prompt), params))
        while not all(request.generated for request in self.requests):
            self.engine.step()
        return self._newest()

    def step_batch(self, tokens: Sequence[int]) -> list[int]:
        """See BatchModel."""
        self.engine.step()
        return self._newest()

    def prefill(self, tokens: Sequence[int]) -> int:
        """See Model."""
        return self.prefill_batch([tokens])[0]

    def step(self, token: int) -> int:
        """See Model."""
        return self.step_batch([token])[0]

    def _newest(self) -> list[int]:
        return [request.generated[-1] for request in self.requests]


if __name__ == "__main__":

    def load() -> tuple[Graphwright, int]:
        """The engine and the size of its vocabulary."""
        threads, context, sequences = map(int, sys.argv[2:5])
        model = Graphwright(sys.argv[1], threads, context, sequences)
        return model, model.engine.plan.vocab_size

    serve(load, f"graphwright {graphwright.__version__}",
          lambda model: model.engine.plan.weight_bytes_per_token)  # fmt: skip
