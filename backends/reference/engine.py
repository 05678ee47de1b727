"""A small engine over the interpreter: ragged batches on paged caches."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from graphwright.ir import BackendError, Level, Program
from graphwright.ir.interpreter import WeightCache, run_program
from graphwright.ir.paging import PagedCache

__all__ = ["ReferenceEngine"]


class ReferenceEngine:
    """Runs a program with a KV cache, a step at a time, by the references of its ops.

    program: at level CACHED or later. Raises BackendError for an earlier one.
    """

    def __init__(self, program: Program, *, num_blocks: int = 64, block_size: int = 16) -> None:
        if program.level < Level.CACHED:
            raise BackendError(
                f"the program is at level '{program.level.name.lower()}' and has no KV cache yet; "
                "run the attention passes first."
            )
        self.program = program
        self.cache = PagedCache(program, num_blocks=num_blocks, block_size=block_size)
        self._weights = WeightCache()
        inputs = {node.target for node in program.graph.nodes if node.op == "placeholder"}
        self._selects_rows = "sample_rows" in inputs

    def step(
        self, batch: Sequence[tuple[int, torch.Tensor]], rows: Sequence[int] | None = None
    ) -> torch.Tensor:
        """One step: appends tokens (int64 [n]) to each sequence, numbered by `cache.start()`.

        rows: the tokens of the step whose logits are wanted, counted through the batch; None: all.
        Returns logits [len(rows), vocab].
        """
        inputs = self.cache.inputs(batch, rows)
        logits = run_program(self.program, inputs, self._weights)
        return logits if self._selects_rows else logits[inputs["sample_rows"].long()]

    def logits_of(
        self, sequences: Sequence[torch.Tensor], chunks: Sequence[Sequence[int]]
    ) -> list[torch.Tensor]:
        """The logits [length, vocab] of every token of `sequences`, fed as `chunks` says.

        chunks: for each step, how many tokens of each sequence it takes (0: not in that step). They
        must add up to the lengths.
        """
        taken = [sum(counts) for counts in zip(*chunks, strict=True)]
        lengths = [len(sequence) for sequence in sequences]
        if taken != lengths:
            raise BackendError(f"the chunks take {taken} tokens of sequences of {lengths}.")
        numbers = [self.cache.start() for _ in sequences]
        parts: list[list[torch.Tensor]] = [[] for _ in sequences]
        for counts in chunks:
            batch, members = [], [i for i, count in enumerate(counts) if count]
            for i in members:
                begin = self.cache.length(numbers[i])
                batch.append((numbers[i], sequences[i][begin : begin + counts[i]]))
            split = self.step(batch).split([counts[i] for i in members])
            for i, part in zip(members, split, strict=True):
                parts[i].append(part)
        for number in numbers:
            self.cache.finish(number)
        return [torch.cat(part) for part in parts]
