"""Probes of programs with adapters: which sequence has which, and how the model computes it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from graphwright.ir.adapters import adapted_leaves, merged
from graphwright.ir.interpreter import WeightCache
from graphwright.ir.program import Program

__all__ = ["AdaptedWeights", "batches", "dealt_adapters"]


class AdaptedWeights:
    """The weights of a program with the changes of one adapter in them, made when they are asked
    for: of all adapters together they are many times the model. The others are `base`'s."""

    def __init__(self, base: WeightCache, adapter: int) -> None:
        self._base, self._adapter = base, adapter

    def load(self, program: Program, name: str) -> torch.Tensor:
        """The tensor of `program.weights[name]`."""
        weight = program.weights[name]
        if not adapted_leaves(weight):
            return self._base.load(program, name)
        return merged(weight, self._adapter)


def dealt_adapters(program: Program, sequences: int) -> list[list[int | None]]:
    """Which adapter each sequence has, in as many rounds as give every adapter a sequence."""
    choices: list[int | None] = [None, *range(len(program.adapters))]
    rounds = -(-len(choices) // sequences)
    return [
        [choices[(turn * sequences + i) % len(choices)] for i in range(sequences)]
        for turn in range(rounds)
    ]


def batches(
    steps: Sequence[Sequence[int]], apart: Sequence[int | None] | None
) -> Iterator[tuple[Sequence[int], list[int]]]:
    """Each step's counts, and the sequences that take part; `apart`: those of one adapter alone."""
    for counts in steps:
        members = [i for i, count in enumerate(counts) if count]
        if apart is None:
            yield counts, members
            continue
        for adapter in dict.fromkeys(apart[i] for i in members):
            yield counts, [i for i in members if apart[i] == adapter]
