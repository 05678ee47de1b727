"""A compiled program in this process: batches of sequences in, logits out, by raw pointers."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from graphwright.backends.rows import POOL_UNIT
from graphwright.backends.tvm.build import BuiltProgram
from graphwright.runtime.step_code import StepCode, StepPool

__all__ = ["CompiledProgram"]

BLOCK = 16


def aligned(count: int, dtype: Any) -> np.ndarray:
    """`count` zeros whose memory starts at a multiple of 64."""
    size = count * np.dtype(dtype).itemsize
    memory = np.zeros(size + 64, np.uint8)
    return memory[-memory.ctypes.data % 64 :][:size].view(dtype)


class CompiledProgram:
    """Holds the cache of up to `sequences` sequences of `context` tokens; blocks lie scattered. Of
    blocks that no later token reads, by the reach of their pool, nothing is left after a step."""

    def __init__(
        self, built: BuiltProgram, folder: Path, *, sequences: int = 4, context: int = 128
    ) -> None:
        path = folder / f"step{len(list(folder.iterdir()))}.so"  # a loaded file must not change
        path.write_bytes(built.library)
        self.code = StepCode(path)
        self.pools: dict[int, StepPool] = {}
        self.chosen = np.zeros(512, np.int32)
        self.plan = built.plan
        self.weights = aligned(built.weight_bytes, np.uint8)
        end = 0
        for piece in built.weights():
            self.weights[end : end + len(piece)] = piece
            end += len(piece)
        assert end == built.weight_bytes == built.plan["weights"]["bytes"]
        self.row = context // BLOCK
        count = self.row * sequences
        kv = built.plan["kv"]
        self.caches = kv.get("pools", [kv])
        slots = sequences * kv.get("slot_bytes", 0) // 4
        sizes = [(count + 1) * max(pool["block_bytes"], 64) for pool in self.caches]
        units = [-(-size // POOL_UNIT) for size in sizes]
        self.places = [sum(units[:number]) for number in range(len(units))]
        memory = aligned(slots + (POOL_UNIT * self.places[-1] + sizes[-1]) // 4, np.float32)
        memory[:] = np.nan  # what nobody has written must not be read
        self.slots, self.kv = memory[:slots], memory[slots:]
        draw = np.random.default_rng(0)
        self.nobody = sequences  # the number of a block that no sequence has
        self.tables = []
        for _ in self.caches:
            starts = draw.permutation(sequences)  # a slot has the number of a first block
            others = (draw.permutation(count - sequences) + sequences + 1).reshape(sequences, -1)
            self.tables.append(np.column_stack([starts, others]).astype(np.int32))
        self.lengths = [0] * sequences
        arena = max(entry["arena_bytes"] for entry in built.plan["entries"].values())
        self.arena = aligned(arena // 4, np.float32)
        self.own_bytes = arena
        self.threads = 2

    def step(
        self,
        batch: Sequence[tuple[int, Sequence[int]]],
        rows: Sequence[int] | None = None,
        entry: str | None = None,
    ) -> torch.Tensor:
        """Appends tokens to sequences, (number, tokens) each; logits of `rows` (None: of all)."""
        tokens = [token for _, new in batch for token in new]
        positions = [self.lengths[s] + i for s, new in batch for i in range(len(new))]
        start = np.cumsum([0, *(len(new) for _, new in batch)])
        rows = list(range(len(tokens))) if rows is None else list(rows)
        entry = entry or ("decode" if len(tokens) <= 8 else "prefill")
        limits = self.plan["entries"][entry]
        assert len(tokens) <= limits["max_tokens"] and len(rows) <= limits["max_rows"]
        vocabulary = self.plan["vocab_size"]
        logits = aligned(max(1, len(rows)) * vocabulary, np.float32)
        logits[:] = 777.0
        self.arena[:] = np.nan
        header = [len(tokens), len(batch), self.row, len(rows), 0, 0, 0, 0]
        tables = [np.concatenate([table[s] for s, _ in batch]) for table in self.tables]
        if len(tables) > 1:
            header[4 : 4 + len(tables)] = [len(tables[0]), *self.places[1:]]
        buffers = [
            self._filled(header, np.int32),
            self._filled(tokens, np.int64),
            self._filled(positions, np.int64),
            self._filled(start, np.int32),
            self._filled(np.concatenate(tables), np.int32),
            self._filled(rows, np.int32),
            logits,
            self.arena,
            self.weights,
            self.kv,
        ]
        pointers = (ctypes.c_void_p * len(buffers))(*(each.ctypes.data for each in buffers))
        self.pool().run(entry, pointers, ctypes.c_void_p(self.chosen.ctypes.data))
        for sequence, new in batch:
            self.lengths[sequence] += len(new)
            self._forget(sequence)
        if not rows:
            assert (logits == 777.0).all()
        found = logits.reshape(-1, vocabulary)[: len(rows)]
        largest = np.where(np.isnan(found).any(1), -1, found.argmax(1))
        assert (self.chosen[: len(rows)] == largest).all()
        return torch.from_numpy(logits.copy()).reshape(-1, vocabulary)[: len(rows)]

    def _forget(self, sequence: int) -> None:
        """Of each pool the blocks that are out of reach."""
        for table, pool in zip(self.tables, self.caches, strict=True):
            if reach := pool.get("reach"):
                end = max(0, (self.lengths[sequence] + 1 - reach["span"]) // BLOCK)
                table[sequence, -(-reach["first"] // BLOCK) : end] = self.nobody

    def pool(self) -> StepPool:
        """The threads of the next step, `self.threads` many."""
        if self.threads not in self.pools:
            self.pools[self.threads] = StepPool(
                self.code, self.threads, own_bytes=self.own_bytes,
                alone_rows=self.plan["alone_rows"], rows=len(self.chosen),
            )  # fmt: skip
        return self.pools[self.threads]

    @staticmethod
    def _filled(values: Any, dtype: Any) -> np.ndarray:
        array = aligned(max(1, len(values)), dtype)
        array[: len(values)] = values
        return array
