"""Sequences of tokens on their way through a program that has integer weights.

They go from one product to the next, all of them before any goes further. In between they go in
batches, so that only what is still to be read is held of all sequences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.fx.node import map_arg

from graphwright.ir.interpreter import Step
from graphwright.ir.ops.embedding import embedding
from graphwright.ir.ops.linear import linear
from graphwright.ir.ops.routed_linear import routed_linear
from graphwright.ir.paging import PagedCache
from graphwright.ir.program import Program
from graphwright.ir.schemes import dequantize
from graphwright.passes.quantized_part import Quantization, QuantizedPart

__all__ = ["LINEAR", "ROUTED", "Lane", "quantization_of"]

gw = torch.ops.gw
LINEAR, ROUTED = gw.quantized_linear.default, gw.quantized_routed_linear.default
_EMBEDDING = gw.quantized_embedding.default
_PLACE = {LINEAR: 1, ROUTED: 2, _EMBEDDING: 0}  # of the weight among the arguments
_BLOCK = 16  # positions of a block of the caches
_TOKENS_AT_ONCE = 2048  # of a batch; more where a sequence is longer


def quantization_of(program: Program, step: Step) -> Quantization | None:
    """What makes the integers that `step` reads, if it reads any."""
    if step.target not in _PLACE:
        return None
    weight = program.weight_of(step.args[_PLACE[step.target]])
    return weight.quantization if isinstance(weight, QuantizedPart) else None


@dataclass
class _Batch:
    """The values of some sequences. states: caches that nothing has read yet, by placeholder."""

    values: dict[fx.Node, Any]
    states: dict[str, tuple[tuple[int, ...], torch.dtype]]


class Lane:
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
        self._program, self._steps, self._floats = program, steps, floats
        self._batches = [self._begin(group) for group in _grouped(sequences)]
        self._place = 0
        self._constants: dict[fx.Node, torch.Tensor] = {}
        self._matrix: tuple[int, torch.Tensor] | None = None  # of the linear at a place

    def advance(self, place: int) -> None:
        """Makes all steps before `place`."""
        for batch in self._batches:
            for each in range(self._place, place):
                self._run(batch, each)
        for step in self._steps[self._place : place]:
            for node in step.dying:
                self._constants.pop(node, None)
        self._place, self._matrix = place, None

    def values(self, argument: Any) -> list[Any]:
        """What an argument of the next step is for each batch."""
        return [self._value(batch, argument) for batch in self._batches]

    def _begin(self, sequences: list[torch.Tensor]) -> _Batch:
        blocks = sum(-(-len(each) // _BLOCK) for each in sequences)
        cache = PagedCache(
            self._program, num_blocks=blocks, block_size=_BLOCK, slots=len(sequences)
        )
        inputs = cache.inputs([(cache.start(), each) for each in sequences])
        states = {
            name: (shape, dtype)
            for state in self._program.states
            for name, shape, dtype in zip(
                state.inputs, state.shapes(blocks, _BLOCK), state.dtypes, strict=True
            )
        }
        given = {
            step.node: inputs[step.target]
            for step in self._steps
            if step.op == "placeholder" and step.target not in states
        }
        return _Batch(given, states)

    def _run(self, batch: _Batch, place: int) -> None:
        step = self._steps[place]
        if step.op in ("placeholder", "get_attr"):
            return
        if step.op == "same":
            result = self._value(batch, step.args[0])
        elif quantization_of(self._program, step) is not None:
            result = self._by_weight(batch, place)
        else:
            args, kwargs = self._value(batch, (step.args, step.kwargs))
            result = step.target(*args, **kwargs)
        batch.values[step.node] = result
        for node in step.dying:
            batch.values.pop(node, None)

    def _by_weight(self, batch: _Batch, place: int) -> Any:
        step = self._steps[place]
        quantization = quantization_of(self._program, step)
        assert quantization is not None
        if step.target is LINEAR:
            x, _, _, *more = step.args
            x, bias, residual = self._value(batch, (x, *more, None, None)[:3])
            matrix = self._linear_matrix(place, quantization)
            return linear.reference(x, matrix, bias, residual, activation=step.kwargs["activation"])
        if not self._floats:
            return step.target(*self._value(batch, step.args), **step.kwargs)
        weight = quantization.weight.load()
        if step.target is _EMBEDDING:
            return embedding.reference(weight, self._value(batch, step.args[2]))
        x, experts, _, _, *more = step.args
        x, experts, bias = self._value(batch, (x, experts, *more, None)[:3])
        return routed_linear.reference(x, experts, weight, bias)

    def _linear_matrix(self, place: int, quantization: Quantization) -> torch.Tensor:
        if self._matrix is not None and self._matrix[0] == place:
            return self._matrix[1]
        if self._floats:
            matrix = quantization.weight.load().float()
        else:
            matrix = dequantize(*quantization.parts())
        # The first step is made for one batch after the other; those behind it take turns.
        self._matrix = (place, matrix) if place == self._place else None
        return matrix

    def _value(self, batch: _Batch, argument: Any) -> Any:
        """`argument` with values for nodes. Weights are loaded, caches made when asked for."""

        def value(node: fx.Node) -> Any:
            if node in batch.values:
                return batch.values[node]
            if node.op == "get_attr":
                if node not in self._constants:
                    self._constants[node] = self._program.weights[str(node.target)].load()
                return self._constants[node]
            shape, dtype = batch.states.pop(str(node.target))
            batch.values[node] = torch.zeros(shape, dtype=dtype)
            return batch.values[node]

        return map_arg(argument, value)


def _grouped(sequences: Sequence[torch.Tensor]) -> list[list[torch.Tensor]]:
    """Neighbours together, as many as make a batch."""
    groups: list[list[torch.Tensor]] = []
    for sequence in sequences:
        if groups and sum(map(len, groups[-1])) + len(sequence) <= _TOKENS_AT_ONCE:
            groups[-1].append(sequence)
        else:
            groups.append([sequence])
    return groups
