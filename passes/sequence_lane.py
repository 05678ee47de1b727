"""Sequences of tokens on their way through a program, step by step, all of them side by side.

In between two places they go in batches, so that only what is still to be read is held of all
sequences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.fx.node import map_arg

from graphwright.ir.interpreter import Step
from graphwright.ir.paging import PagedCache
from graphwright.ir.program import Program

__all__ = ["Batch", "Constants", "SequenceLane"]

_BLOCK = 16  # positions of a block of the caches
_TOKENS_AT_ONCE = 2048  # of a batch; more where a sequence is longer


@dataclass
class Batch:
    """The values of some sequences. states: caches that nothing has read yet, by placeholder."""

    values: dict[fx.Node, Any]
    states: dict[str, tuple[tuple[int, ...], torch.dtype]]

    def copy(self, state_names: set[str]) -> Batch:
        """Values of its own where steps write into them; the others are shared."""
        values = {
            node: value.clone() if _is_state(node, state_names) else value
            for node, value in self.values.items()
        }
        return Batch(values, dict(self.states))


def _is_state(node: fx.Node, state_names: set[str]) -> bool:
    return node.op == "placeholder" and str(node.target) in state_names


class Constants:
    """The weights that steps read, each loaded once and held until it is dropped."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._loaded: dict[fx.Node, torch.Tensor] = {}

    def value(self, node: fx.Node) -> torch.Tensor:
        """The tensor of a get_attr node."""
        if node not in self._loaded:
            self._loaded[node] = self._program.weights[str(node.target)].load()
        return self._loaded[node]

    def drop(self, nodes: Sequence[fx.Node]) -> None:
        """Those of `nodes` that are weights are not read again."""
        for node in nodes:
            self._loaded.pop(node, None)


class SequenceLane:
    """All sequences, int64 [n] each, and how far they are. steps: those of `program`.

    tokens_at_once: of a batch, at most, unless one sequence has more. Subclasses compute single
    steps in another way.
    """

    def __init__(
        self,
        program: Program,
        steps: list[Step],
        sequences: Sequence[torch.Tensor],
        *,
        tokens_at_once: int = _TOKENS_AT_ONCE,
    ) -> None:
        self.program, self.steps = program, steps
        self.batches = [self._begin(group) for group in _grouped(sequences, tokens_at_once)]
        self.constants = Constants(program)
        self.place = 0

    def advance(self, place: int, *, drop: bool = True) -> None:
        """Makes all steps before `place`. drop: weights that these steps are the last to read."""
        for batch in self.batches:
            for each in range(self.place, place):
                self.run(batch, each)
        if drop:
            for step in self.steps[self.place : place]:
                self.constants.drop(step.dying)
        self.place = place

    def values(self, argument: Any) -> list[Any]:
        """What an argument of the next step is for each batch."""
        return [self.value(batch, argument) for batch in self.batches]

    def run(self, batch: Batch, place: int) -> None:
        """Makes the step at `place` for one batch."""
        step = self.steps[place]
        if step.op in ("placeholder", "get_attr", "output"):
            return
        batch.values[step.node] = self.result(batch, place)
        for node in step.dying:
            batch.values.pop(node, None)

    def result(self, batch: Batch, place: int) -> Any:
        """What the step at `place` gives."""
        step = self.steps[place]
        if step.op == "same":
            return self.value(batch, step.args[0])
        args, kwargs = self.value(batch, (step.args, step.kwargs))
        return step.target(*args, **kwargs)

    def value(self, batch: Batch, argument: Any) -> Any:
        """`argument` with values for nodes. Weights are loaded, caches made when asked for."""

        def value(node: fx.Node) -> Any:
            if node in batch.values:
                return batch.values[node]
            if node.op == "get_attr":
                return self.constants.value(node)
            shape, dtype = batch.states.pop(str(node.target))
            batch.values[node] = torch.zeros(shape, dtype=dtype)
            return batch.values[node]

        return map_arg(argument, value)

    def _begin(self, sequences: list[torch.Tensor]) -> Batch:
        blocks = sum(-(-len(each) // _BLOCK) for each in sequences)
        cache = PagedCache(self.program, num_blocks=blocks, block_size=_BLOCK, slots=len(sequences))
        inputs = cache.inputs([(cache.start(), each) for each in sequences])
        states = {
            name: (shape, dtype)
            for state in self.program.states
            for name, shape, dtype in zip(
                state.inputs, state.shapes(blocks, _BLOCK), state.dtypes, strict=True
            )
        }
        given = {
            step.node: inputs[step.target]
            for step in self.steps
            if step.op == "placeholder" and step.target not in states
        }
        return Batch(given, states)


def _grouped(sequences: Sequence[torch.Tensor], tokens: int) -> list[list[torch.Tensor]]:
    """Neighbours together, as many as make a batch."""
    groups: list[list[torch.Tensor]] = []
    for sequence in sequences:
        if groups and sum(map(len, groups[-1])) + len(sequence) <= tokens:
            groups[-1].append(sequence)
        else:
            groups.append([sequence])
    return groups
