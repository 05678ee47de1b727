"""One kernel for a recurrence over the tokens of a ragged batch, made from the graph of a token.

A thread takes a tile of the states of a sequence (scans/tiles.py) through all tokens of the step,
stage by stage (scans/stages.py). Its elements lie one after the other in the sequence's slot and
are worked on there; as a tile fits into the first cache, memory sees each of them once a step.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from torch import fx
from tvm import tirx
from tvm.tirx.script import builder as T

from graphwright.backends.scans.plan import plan_tiles
from graphwright.backends.scans.reads import static_sizes
from graphwright.backends.scans.stages import Place
from graphwright.backends.scans.tiles import Tiles
from graphwright.backends.tvm.kernels.kernel import Expr, Kernel, define, partition
from graphwright.backends.tvm.kernels.loops import load, quotient, remainder, store, vector_loop
from graphwright.backends.tvm.kernels.scan_fetch import fetch_runs, runs_of
from graphwright.backends.tvm.kernels.scan_loops import Scope, StageLoops, stored_dtype
from graphwright.backends.tvm.kernels.scan_values import Memory
from graphwright.backends.tvm.kernels.stage import stage as on_stack
from graphwright.backends.tvm.kernels.vector import constant
from graphwright.backends.tvm.target import Cpu
from graphwright.ir.errors import BackendError
from graphwright.ir.scan_step import ScanStep

__all__ = ["plan_scan", "scan", "scan_name"]

SCRATCH_BYTES = 512 << 10  # on the stack of a thread


def scan_name(step: str, row_strides: Sequence[int], slot_stride: int, cpu: Cpu) -> str:
    """The kernel's name, from everything that makes its code."""
    text = f"{step} {tuple(row_strides)} {slot_stride} {cpu.name}"
    return f"scan_{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def plan_scan(step: str, cpu: Cpu) -> Tiles:
    """The tiles and stages of a recurrence. Raises BackendError."""
    return plan_tiles(ScanStep.parse(step), cpu.lanes)


def scan(step: str, row_strides: Sequence[int], *, slot_stride: int, cpu: Cpu) -> Kernel:
    """The kernel of gw.cached_scan for rows that lie `row_strides` elements apart.

    Pointers: batch, the rows, the weights (dense, in the order that `plan_scan` says), state,
    positions, query_start, block_table, out [T, F]. The state of slot 0 is at `state`, that of slot
    r r * slot_stride elements before; in it lie the states one behind the other, each tile by tile.
    bool tensors are bytes of 0 and 1.
    Raises BackendError naming what cannot be computed.
    """
    tiles = plan_scan(step, cpu)
    body = tiles.stages.body
    parsed = ScanStep.parse(step)
    given = body.placeholders[len(body.states) :]
    if len(row_strides) != parsed.rows:
        raise BackendError(f"scan: {parsed.rows} rows but {len(row_strides)} strides.")
    pointers = [("batch", "int32")]
    pointers += [(f"in{i}", stored_dtype(node)) for i, node in enumerate(given)]
    pointers += [("state", "float32"), ("positions", "int64"), ("query_start", "int32")]
    pointers += [("block_table", "int32"), ("out", "float32")]

    def emit(thread: Expr, threads: Expr, rows: Expr, batch: Expr, *rest: Expr) -> None:
        inputs, paging = rest[: len(given)], rest[len(given) :]
        writer = _Writer(
            tiles, cpu.lanes, rows, dict(zip(given, inputs, strict=True)),
            dict(zip(given, row_strides, strict=False)), paging[0], paging[4], slot_stride,
            parsed.result_size,
        )  # fmt: skip
        writer.write(thread, threads, batch, paging[1], paging[2], paging[3])

    return define(scan_name(step, row_strides, slot_stride, cpu), pointers, emit)


@dataclass
class _Writer:
    """Writes the loops of a kernel down."""

    tiles: Tiles
    width: int
    rows: Expr
    inputs: dict[fx.Node, Expr]
    strides: dict[fx.Node, int]  # of rows; weights have none
    state: Expr
    out: Expr
    slot_stride: int
    result_size: int

    def write(
        self, thread: Expr, threads: Expr, batch: Expr, positions: Expr, query_start: Expr,
        block_table: Expr,
    ) -> None:  # fmt: skip
        stages = self.tiles.stages
        scratch = self._scratch()
        first, last = partition(batch[1] * self.tiles.count, thread, threads)
        with T.serial(first, last) as item:
            tile, sequence = T.bind(quotient(item, batch[1])), T.bind(remainder(item, batch[1]))
            begin, end = (T.bind(query_start[sequence + i]) for i in range(2))
            with T.If(begin < end), T.Then():
                slot = tirx.Cast("int64", block_table[sequence * batch[2]])
                held = T.bind(slot * T.int64(-self.slot_stride))
                states = self._states(held, tile)
                with T.If(positions[begin] == T.int64(0)), T.Then():
                    for number, state in enumerate(stages.body.states):
                        self._fill(states[number], self._held(number), state.initial)
                starts = self._tile_starts(tile)
                rows: dict[fx.Node | None, tuple[Expr, int]] = {
                    node: (self.inputs[node], stride) for node, stride in self.strides.items()
                }
                rows[None] = self.out, self.result_size
                runs = runs_of(self.tiles, self.strides)
                with T.serial(begin, end) as token:
                    fetch_runs(runs, rows, token, end, starts)
                    self._token(token, states, scratch, starts)

    # ---- memory

    def _held(self, number: int) -> int:
        return self.tiles.elements(Place("state", number))

    def _scratch(self) -> dict[Place, Expr]:
        stages = self.tiles.stages
        kinds = {place: stored_dtype(node) for node, place in stages.stored.items()}
        found = [place for place in stages.sizes if place.kind == "scratch"]
        found += [Place("state", number) for number in sorted(stages.deferred)]
        sizes = {place: self.tiles.elements(place) for place in found}
        dtypes = {place: kinds[place] if place.kind == "scratch" else "float32" for place in found}
        total = sum(sizes[place] * np.dtype(dtypes[place]).itemsize for place in found)
        if total > SCRATCH_BYTES:
            raise BackendError(
                f"a recurrence needs {total} bytes beside its states for one tile, more than "
                f"{SCRATCH_BYTES}: {', '.join(f'{p.kind} {p.number}' for p in found)}."
            )
        return {place: on_stack(sizes[place], dtypes[place]) for place in found}

    def _states(self, held: Expr, tile: Expr) -> list[Expr]:
        """The tile of each state."""
        found, offset = [], 0
        for number, state in enumerate(self.tiles.stages.body.states):
            size = self._held(number)
            address = T.address_of(self.state[held + (offset + tile * size)])
            found.append(T.decl_buffer((size,), "float32", data=T.bind(address)))
            offset += state.count
        return found

    def _fill(self, buffer: Expr, count: int, value: float) -> None:
        vector_loop(
            count, self.width,
            lambda first, width: store(buffer, first, constant(value, width), width),
        )  # fmt: skip

    def _tile_starts(self, tile: Expr) -> list[Expr]:
        found: list[Expr] = []
        for axis in reversed(self.tiles.axes):
            found.append(T.bind(remainder(tile, axis.count) * axis.block))
            tile = T.bind(quotient(tile, axis.count))
        return found[::-1]

    # ---- a token

    def _token(
        self, token: Expr, states: list[Expr], scratch: dict[Place, Expr], starts: list[Expr]
    ) -> None:
        stages = self.tiles.stages
        places = {Place("state", n): (buffer, T.int32(0)) for n, buffer in enumerate(states)}
        places |= {place: (buffer, T.int32(0)) for place, buffer in scratch.items()}
        first = T.bind(token * self.result_size)
        for number, node in enumerate(stages.body.results):
            places[Place("result", number)] = (self.out, first)
            first = first + math.prod(static_sizes(node))
        outside = {}
        for node, buffer in self.inputs.items():
            stride = self.strides.get(node, 0)
            first_of_row = T.bind(token * stride) if stride else T.int32(0)
            outside[node] = Memory(buffer, first_of_row, partial(self.tiles.position, node))
        scope = Scope(self.tiles, self.width, self.rows, outside, states, places, starts)
        for stage in stages.order:
            StageLoops(scope, stage).write()
        for number in sorted(stages.deferred):
            self._commit(states[number], scratch[Place("state", number)], self._held(number))

    def _commit(self, state: Expr, made: Expr, count: int) -> None:
        def copy(first: Expr, width: int) -> None:
            store(state, first, load(made, first, width), width)

        vector_loop(count, self.width, copy)
