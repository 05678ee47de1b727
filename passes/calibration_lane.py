"""Sequences of tokens on their way through a program that has integer weights.

They go from one product to the next, all of them before any goes further.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from graphwright.ir.interpreter import Step
from graphwright.ir.ops.embedding import embedding
from graphwright.ir.ops.linear import linear
from graphwright.ir.ops.routed_linear import routed_linear
from graphwright.ir.program import Program
from graphwright.ir.schemes import dequantize
from graphwright.passes.quantized_part import Quantization, QuantizedPart
from graphwright.passes.sequence_lane import Batch, SequenceLane

__all__ = ["LINEAR", "ROUTED", "Lane", "quantization_of"]

gw = torch.ops.gw
LINEAR, ROUTED = gw.quantized_linear.default, gw.quantized_routed_linear.default
_EMBEDDING = gw.quantized_embedding.default
_PLACE = {LINEAR: 1, ROUTED: 2, _EMBEDDING: 0}  # of the weight among the arguments


def quantization_of(program: Program, step: Step) -> Quantization | None:
    """What makes the integers that `step` reads, if it reads any."""
    if step.target not in _PLACE:
        return None
    weight = program.weight_of(step.args[_PLACE[step.target]])
    return weight.quantization if isinstance(weight, QuantizedPart) else None


class Lane(SequenceLane):
    """All sequences and how far they are. floats: products take the weights before quantization.

    steps: those of `program`. Otherwise products take what integers stand for; those of linears are
    multiplied as floats, with inputs that are not quantized.
    """

    def __init__(
        self,
        program: Program,
        steps: list[Step],
        sequences: Sequence[torch.Tensor],
        *,
        floats: bool,
    ) -> None:
        super().__init__(program, steps, sequences)
        self._floats = floats
        self._matrix: tuple[int, torch.Tensor] | None = None  # of the linear at a place

    def advance(self, place: int, *, drop: bool = True) -> None:
        super().advance(place, drop=drop)
        self._matrix = None

    def result(self, batch: Batch, place: int) -> Any:
        if quantization_of(self.program, self.steps[place]) is None:
            return super().result(batch, place)
        return self._by_weight(batch, place)

    def _by_weight(self, batch: Batch, place: int) -> Any:
        step = self.steps[place]
        quantization = quantization_of(self.program, step)
        assert quantization is not None
        if step.target is LINEAR:
            x, _, _, *more = step.args
            x, bias, residual = self.value(batch, (x, *more, None, None)[:3])
            matrix = self._linear_matrix(place, quantization)
            return linear.reference(x, matrix, bias, residual, activation=step.kwargs["activation"])
        if not self._floats:
            return step.target(*self.value(batch, step.args), **step.kwargs)
        weight = quantization.weight.load()
        if step.target is _EMBEDDING:
            return embedding.reference(weight, self.value(batch, step.args[2]))
        x, experts, _, _, *more = step.args
        x, experts, bias = self.value(batch, (x, experts, *more, None)[:3])
        return routed_linear.reference(x, experts, weight, bias)

    def _linear_matrix(self, place: int, quantization: Quantization) -> torch.Tensor:
        if self._matrix is not None and self._matrix[0] == place:
            return self._matrix[1]
        if self._floats:
            matrix = quantization.weight.load().float()
        else:
            matrix = dequantize(*quantization.parts())
        # The first step is made for one batch after the other; those behind it take turns.
        self._matrix = (place, matrix) if place == self.place else None
        return matrix
