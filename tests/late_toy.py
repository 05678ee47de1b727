"""The toy model on a stand-in for a GPU: steps wait in a stream until somebody waits for them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray
from toy_model import ToyLibrary

from graphwright.runtime.draws import Draw
from graphwright.runtime.library import StepBuffers

__all__ = ["LateToy"]


class LateToy(ToyLibrary):
    """An OverlappingLibrary. said: ("start" or "finish", number of the step) in order.

    nan: numbers of steps that find a logit of their first row to be NaN. Steps run on the inputs as
    they were at their start, in their order, when one of them is finished; what a step has found is
    overwritten when another one starts.
    """

    overlaps = True

    def __init__(self) -> None:
        super().__init__("any")
        self.said: list[tuple[str, int]] = []
        self.nan: set[int] = set()
        self.open: dict[int, tuple[Sequence[Draw], bool]] = {}  # what is wanted of each step
        self._number = 0
        self._stream: deque[tuple[int, Callable[[], object]]] = deque()
        self._chosen = np.zeros(0, np.int32)  # by the step in front
        self._found: dict[int, NDArray[np.int32] | None] = {}
        self._shown: list[NDArray[np.int32]] = []

    def run(
        self, entry: str, buffers: StepBuffers, draws: Sequence[Draw] = (), logits: bool = True
    ) -> NDArray[np.int32] | None:
        return self.finish(self.start(entry, buffers, draws, logits))

    def start(self, entry: str, buffers: StepBuffers, draws: Sequence[Draw], logits: bool) -> int:
        """The number of the step."""
        for shown in self._shown:
            shown[:] = 10**6
        self._shown.clear()
        number, self._number = self._number, self._number + 1
        self.open[number] = draws, logits
        assert len(self.open) < 2 or not any(rows for _, rows in self.open.values()), self.open
        assert len(self.open) < 2 or all(draws for draws, _ in self.open.values()), self.open
        assert len(self.open) <= 2
        inputs = ("batch", "tokens", "positions", "query_start", "block_table", "sample_rows")
        kept = replace(buffers, **{name: getattr(buffers, name).copy() for name in inputs})
        for name in inputs[1:]:
            getattr(buffers, name)[:] = 10**6
        self._stream.append((number, partial(self._compute, number, entry, kept)))
        self.said.append(("start", number))
        return number

    def finish(self, ticket: int) -> NDArray[np.int32] | None:
        self.said.append(("finish", ticket))
        while self._stream and self._stream[0][0] <= ticket:
            self._stream.popleft()[1]()
        del self.open[ticket]
        found = self._found.pop(ticket)
        if found is not None:
            self._shown.append(found)
        return found

    def put(self, work: Callable[[], object]) -> None:
        """Something in the stream that is done as late as it may be: when the next step begins."""
        self._stream.append((self._number, work))

    def _compute(self, number: int, entry: str, buffers: StepBuffers) -> None:
        tokens = buffers.tokens[: buffers.batch[0]]
        for place in np.flatnonzero(tokens < 0):
            tokens[place] = max(0, self._chosen[-1 - tokens[place]])
        found = super().run(entry, buffers, *self.open[number])
        if found is not None and number in self.nan:
            found[0] = -1
        self._chosen = np.zeros(0, np.int32) if found is None else found.copy()
        self._found[number] = found
