"""Checking passes over a row part by numbers: the same random rows before and after."""

from __future__ import annotations

import torch

from graphwright.ir.interpreter import Interpreter
from graphwright.ir.program import Program
from graphwright.passes.verification import NumericCheck

__all__ = ["RowCheck"]

_ROWS = (1, 7, 33)


class RowCheck(NumericCheck):
    """NumericCheck for programs of row parts, of `width` values a row."""

    def __init__(self, width: int, seed: int = 0) -> None:
        super().__init__(seed)
        generator = torch.Generator().manual_seed(seed)
        self._rows = [torch.randn(count, width, generator=generator) for count in _ROWS]

    def _changed(self, got: torch.Tensor, want: torch.Tensor) -> str:
        return "rows of random numbers by"

    def _run(
        self, program: Program, chosen: list[torch.Tensor] | None = None
    ) -> list[torch.Tensor]:
        interpreter = Interpreter(program)
        return [interpreter.run({"tokens": rows}, self._weights) for rows in self._rows]
