"""Paged caches for running a program step by step: which block holds what, and a step's inputs."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from graphwright.ir.errors import PassError
from graphwright.ir.program import Program
from graphwright.ir.states import RecurrentState

__all__ = ["PagedCache"]


@dataclass
class _Sequence:
    length: int = 0
    blocks: list[int] = field(default_factory=list)


class PagedCache:
    """The states of some sequences in blocks of `block_size` positions, and each step's inputs.

    Blocks are given out in a shuffled order, are never cleaned, and start as NaN (integers: as
    their largest value, with scales of NaN), so that reading a wrong or an unwritten position shows
    in the logits. The first block of a sequence is one of the first `slots`: recurrent states have
    a place for each of those, and no more.
    """

    def __init__(
        self, program: Program, *, num_blocks: int = 64, block_size: int = 16, slots: int = 8
    ) -> None:
        self.block_size = block_size
        recurrent = any(isinstance(state, RecurrentState) for state in program.states)
        self._num_blocks = num_blocks
        self._adapters = len(program.adapters)
        self._slots = min(slots, num_blocks) if recurrent else num_blocks
        self._sequences: dict[int, _Sequence] = {}
        self._first, self._free = list(range(self._slots)), list(range(self._slots, num_blocks))
        for blocks in (self._first, self._free):
            random.Random(0).shuffle(blocks)
        self._tensors: dict[str, torch.Tensor] = {}
        for state in program.states:
            places = self._slots if isinstance(state, RecurrentState) else num_blocks
            shapes = state.shapes(places, block_size)
            for name, shape, dtype in zip(state.inputs, shapes, state.dtypes, strict=True):
                self._tensors[name] = torch.full(shape, _poison(dtype), dtype=dtype)

    def start(self) -> int:
        """A new, empty sequence; returns its number."""
        number = max(self._sequences, default=-1) + 1
        self._sequences[number] = _Sequence()
        return number

    def finish(self, number: int) -> None:
        """Gives the blocks of a sequence back, as they are."""
        for block in self._sequences.pop(number).blocks:
            (self._first if block < self._slots else self._free).append(block)

    def length(self, number: int) -> int:
        """Positions that a sequence has in the cache."""
        return self._sequences[number].length

    def inputs(
        self,
        batch: Sequence[tuple[int, torch.Tensor]],
        rows: Sequence[int] | None = None,
        adapters: Sequence[int | None] | None = None,
    ) -> dict[str, torch.Tensor]:
        """Every input of a step that appends tokens (int64 [n]) to sequences; claims their blocks.

        rows: the tokens of the step whose logits are wanted, counted through the batch; None: all.
        adapters: which one each sequence of the batch has chosen, if the program has any.
        """
        positions = []
        for number, tokens in batch:
            begin = self._sequences[number].length
            positions.append(torch.arange(begin, begin + len(tokens)))
            self._grow(number, begin + len(tokens))
        counts = [len(tokens) for _, tokens in batch]
        tables = [self._sequences[number].blocks for number, _ in batch]
        width = max(len(table) for table in tables)
        wanted = range(sum(counts)) if rows is None else rows
        return {
            "tokens": torch.cat([tokens for _, tokens in batch]),
            "positions": torch.cat(positions),
            "query_start": torch.tensor([0, *counts]).cumsum(0).int(),
            "block_table": torch.tensor(
                [table + [0] * (width - len(table)) for table in tables], dtype=torch.int32
            ),
            "sample_rows": torch.tensor(list(wanted), dtype=torch.int32),
            **self._adapter_inputs(counts, list(wanted), adapters),
            **self._tensors,
        }

    def _adapter_inputs(
        self, counts: list[int], rows: list[int], adapters: Sequence[int | None] | None
    ) -> dict[str, torch.Tensor]:
        if not self._adapters:
            return {}
        chosen = [
            self._adapters if each is None else each for each in adapters or [None] * len(counts)
        ]
        tokens = torch.tensor(chosen).repeat_interleave(torch.tensor(counts))[:, None]
        return {"adapters": tokens, "row_adapters": tokens[rows]}

    def _grow(self, number: int, length: int) -> None:
        sequence = self._sequences[number]
        while len(sequence.blocks) * self.block_size < length:
            blocks = (self._free if sequence.blocks else []) or self._first
            if not blocks:
                starts = not sequence.blocks and self._slots < self._num_blocks
                count = f"{self._slots} first" if starts else str(self._num_blocks)
                raise PassError(
                    f"the {count} blocks of {self.block_size} positions are all taken; sequence "
                    f"{number} cannot grow to {length} positions."
                )
            sequence.blocks.append(blocks.pop())
        sequence.length = length


def _poison(dtype: torch.dtype) -> float:
    return float("nan") if dtype.is_floating_point else torch.iinfo(dtype).max
