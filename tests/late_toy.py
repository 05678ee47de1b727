"""The toy model on a stand-in for a GPU: steps wait in a stream until somebody waits for them."""

from __future__ import annotations

from collections import deque
from dataclasses import replace

import numpy as np
from toy_model import ToyLibrary

from graphwright.runtime.candidates import Candidates
from graphwright.runtime.library import StepBuffers

__all__ = ["LateToy"]


class LateToy(ToyLibrary):
    """An OverlappingLibrary. said: ("start" or "finish", number of the step) in order.

    nan: numbers of steps that find a logit of their first row to be NaN. Steps run on the inputs as
    they were at their start, in their order, when one of them is finished; what a step has found is
    overwritten when another one starts.
    """

    overlaps = True

    def __init__(self, candidates: int = 1) -> None:
        super().__init__(candidates)
        self.said: list[tuple[str, int]] = []
        self.nan: set[int] = set()
        self.open: dict[int, tuple[int, bool]] = {}  # what is wanted of each step
        self._number = 0
        self._stream: deque[tuple[int, str, StepBuffers]] = deque()
        self._chosen = np.zeros(0, np.int32)  # by the step in front
        self._found: dict[int, Candidates | None] = {}
        self._shown: list[Candidates] = []

    def run(
        self, entry: str, buffers: StepBuffers, largest: int = 0, logits: bool = True
    ) -> Candidates | None:
        return self.finish(self.start(entry, buffers, largest, logits))

    def start(self, entry: str, buffers: StepBuffers, largest: int, logits: bool) -> int:
        """The number of the step."""
        for shown in self._shown:
            shown.ids[:] = 10**6
        self._shown.clear()
        number, self._number = self._number, self._number + 1
        self.open[number] = largest, logits
        assert len(self.open) < 2 or set(self.open.values()) == {(1, False)}, self.open
        assert len(self.open) <= 2
        inputs = ("batch", "tokens", "positions", "query_start", "block_table", "sample_rows")
        kept = replace(buffers, **{name: getattr(buffers, name).copy() for name in inputs})
        for name in inputs[1:]:
            getattr(buffers, name)[:] = 10**6
        self._stream.append((number, entry, kept))
        self.said.append(("start", number))
        return number

    def finish(self, ticket: int) -> Candidates | None:
        self.said.append(("finish", ticket))
        while self._stream and self._stream[0][0] <= ticket:
            self._compute(*self._stream.popleft())
        del self.open[ticket]
        found = self._found.pop(ticket)
        if found is not None:
            self._shown.append(found)
        return found

    def _compute(self, number: int, entry: str, buffers: StepBuffers) -> None:
        tokens = buffers.tokens[: buffers.batch[0]]
        for place in np.flatnonzero(tokens < 0):
            tokens[place] = max(0, self._chosen[-1 - tokens[place]])
        found = super().run(entry, buffers, *self.open[number])
        if found is not None and number in self.nan:
            found.ids[0] = -1
        alone = found is not None and found.count == 1
        self._chosen = found.ids[:, 0].copy() if found and alone else np.zeros(0, np.int32)
        self._found[number] = found
