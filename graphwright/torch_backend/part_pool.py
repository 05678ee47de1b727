"""The threads and the arena in which all parts of a process run, one part at a time."""

from __future__ import annotations

import ctypes
import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphwright.backends.tvm.phases import ALONE_ROWS, PARAMETERS
from graphwright.runtime.memory import Memory
from graphwright.runtime.step_code import StepPool
from graphwright.torch_backend.part_code import CHUNK, DECODE_ROWS, PartCode

__all__ = ["PartPool"]

_LEAST_PHASES, _LEAST_ARENA = 256, 16 << 20
_PLACES = {name: place for place, name in enumerate(PARAMETERS)}


class PartPool:
    """Runs parts on `threads` threads. It grows with what the parts need."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._lock = threading.Lock()
        self._pool: StepPool | None = None
        self._phases, self._arena = 0, _memory(1)
        self._batch = _memory(32).view(np.int32)
        self._pointers = (ctypes.c_void_p * len(PARAMETERS))()
        self._pointers[_PLACES["batch"]] = self._batch.ctypes.data

    def run(self, part: PartCode, weights: int, rows: int, inputs: int, outputs: int) -> None:
        """`rows` rows from address `inputs` to address `outputs`, both float32 [rows, …] at
        multiples of 64 bytes, or of the size of a row where that is none. Raises RuntimeError."""
        with self._lock:
            pool = self._for(part)
            pointers, batch = self._pointers, self._batch
            pointers[_PLACES["weights"]] = weights
            step = DECODE_ROWS if rows <= DECODE_ROWS else CHUNK
            entry = "decode" if rows <= DECODE_ROWS else "prefill"
            for first in range(0, rows, step):
                count = min(step, rows - first)
                batch[0] = batch[3] = count
                pointers[_PLACES["tokens"]] = inputs + 4 * first * part.inputs
                pointers[_PLACES["logits"]] = outputs + 4 * first * part.outputs
                pool.run(entry, pointers, code=part.code)

    def _for(self, part: PartCode) -> StepPool:
        """The pool, made anew where `part` needs more than any before."""
        arena, phases = part.arena_bytes, part.phases
        if self._pool is None or arena > len(self._arena) or phases > self._phases:
            self._phases = max(phases, self._phases, _LEAST_PHASES)
            self._arena = _memory(max(arena, len(self._arena), _LEAST_ARENA))
            self._pointers[_PLACES["arena"]] = self._arena.ctypes.data
            if self._pool is not None:
                self._pool.close()
            self._pool = StepPool(
                part.code, self._threads, own_bytes=len(self._arena), alone_rows=ALONE_ROWS,
                rows=CHUNK, phases=self._phases,
            )  # fmt: skip
        return self._pool


def _memory(size: int) -> NDArray[Any]:
    return Memory({"parts": size}).allocate("parts", size)
