"""Checking passes over a row part by numbers: the same random rows before and after."""

from __future__ import annotations

import torch

from graphwright.ir.errors import PassError
from graphwright.ir.interpreter import Interpreter, WeightCache
from graphwright.ir.program import Program
from graphwright.passes.base import Exactness
from graphwright.passes.verification import promise_ratio

__all__ = ["RowCheck"]

_ROWS = (1, 7, 33)


class RowCheck:
    """Use as PassContext.check for programs of row parts, of `width` values a row."""

    def __init__(self, width: int, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self._rows = [torch.randn(count, width, generator=generator) for count in _ROWS]
        self._weights = WeightCache()
        self._want: list[torch.Tensor] = []

    def remember(self, program: Program) -> None:
        """What the next program's results must be."""
        self._want = self._run(program)

    def compare(self, program: Program, exactness: Exactness) -> float:
        """The largest error as a share of what `exactness` allows. Raises PassError above 1."""
        want, got = self._want, self._run(program)
        self._want = got
        worst = max(promise_ratio(g, w, exactness) for g, w in zip(got, want, strict=True))
        if not worst <= 1:
            raise PassError(
                f"the pass changed rows of random numbers by {worst:.3g} times what "
                f"'{exactness.value}' allows."
            )
        return worst

    def _run(self, program: Program) -> list[torch.Tensor]:
        interpreter = Interpreter(program)
        return [interpreter.run({"tokens": rows}, self._weights) for rows in self._rows]
