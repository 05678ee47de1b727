"""An artifact run by the engine; greedy.   graphwright_worker.py ARTIFACT THREADS"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

from protocol import serve

import graphwright
from graphwright.runtime.engine import Engine
from graphwright.runtime.request import Request
from graphwright.runtime.sampling_params import SamplingParams


class Graphwright:
    """One artifact in one engine of 1024 positions; the engine itself feeds back its tokens."""

    def __init__(self, path: str, threads: int) -> None:
        self.engine = Engine(path, max_sequences=1, context=1024, threads=threads)
        self.request: Request | None = None

    def prefill(self, tokens: Sequence[int]) -> int:
        """See Model."""
        if self.request is not None:
            self.engine.cancel(self.request)
        params = SamplingParams(temperature=0.0, max_tokens=1024 - len(tokens), ignore_eos=True)
        self.request = self.engine.submit(list(tokens), params)
        while not self.request.generated:
            self.engine.step()
        return self.request.generated[-1]

    def step(self, token: int) -> int:
        """See Model."""
        self.engine.step()
        assert self.request is not None
        return self.request.generated[-1]


if __name__ == "__main__":
    begin = time.perf_counter()
    model = Graphwright(sys.argv[1], int(sys.argv[2]))
    seconds = time.perf_counter() - begin
    serve(model, model.engine.plan.vocab_size, seconds, f"graphwright {graphwright.__version__}")
