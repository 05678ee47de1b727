"""How long a kernel should take on a chip, from bytes and operations: what defaults are chosen by.

A product's time is the longest of four, which overlap:

* memory: its weights, once, and rows in and out, at the bandwidth that the bytes in flight allow
  (Little's law: what stages of the resident programs load, over the latency of memory);
* the L2 cache: what every program reads again;
* arithmetic: of whole tiles, at the share of the tensor cores' rate that a tile can reach, which is
  bound by how often an operand is fetched from shared memory;
* of few rows, the steps of one program after the other: each takes its multiprocessor's time for
  addresses, barriers and rows, however few programs there are (measured on an H200).

The first three grow with how unevenly programs fall on multiprocessors (memory less, which all
share); a start and what combining costs are added. It ranks candidates; --tune measures them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from graphwright.backends.triton.chips import Chip
from graphwright.backends.triton.dtypes import ITEM_SIZES
from graphwright.backends.triton.kernels.gemv import VectorShape
from graphwright.backends.triton.kernels.linear import Tiles
from graphwright.backends.triton.kernels.sizes import quotient_up
from graphwright.backends.triton.kernels.weight_format import CHUNK, WeightFormat

__all__ = ["Product", "product_seconds", "ranked", "vector_seconds"]

LATENCY = 0.8e-6  # seconds from a load of memory to its data
START = 2e-6  # seconds that a launch of a captured graph takes beside its work
STEP = 0.45e-6  # seconds of a multiprocessor that a program takes for 128 inputs, among others
ALONE = {"dense": 0.8e-6, "w8": 0.8e-6, "w4": 0.9e-6}  # and when it has it for itself
HANDOVER = 1.5e-6  # seconds of counting, and of loading what the other programs of a tile stored
L2 = 2.5  # the L2 cache's bandwidth, in that of memory
RESIDENT = 8  # programs of a multiprocessor, whatever they need
C = TypeVar("C")


@dataclass(frozen=True)
class Product:
    """rows of k inputs of `dtype`, times a weight [n, k]."""

    rows: int
    n: int
    k: int
    format: WeightFormat
    dtype: str

    @property
    def weight_bytes(self) -> float:
        """Bytes of the weight, with its scales."""
        format, count = self.format, self.n * self.k
        each = {"dense": float(ITEM_SIZES[format.dtype]), "w8": 1.0, "w4": 0.5}[format.kind]
        scale = {"dense": 0, "w8": 4, "w4": 2}[format.kind] + format.zero
        return count * each + scale * (count / format.group if format.group else self.n)

    @property
    def item(self) -> int:
        """Bytes of an activation."""
        return ITEM_SIZES[self.dtype]


def product_seconds(product: Product, tiles: Tiles, chip: Chip) -> float:
    """Of `linear` with these tiles."""
    row_tiles = quotient_up(product.rows, tiles.rows)
    output_tiles = quotient_up(product.n, tiles.outputs)
    format = product.format
    each = product.weight_bytes / (product.n * product.k)  # bytes of a weight
    stage = tiles.step * (tiles.outputs * each + tiles.rows * product.item)
    programs = row_tiles * output_tiles * tiles.splits
    room = min(chip.shared // max(1.0, stage * tiles.num_stages), 64 // tiles.num_warps, RESIDENT)
    resident = max(1, min(int(room), math.ceil(programs / chip.multiprocessors)))
    weights = product.weight_bytes * tiles.outputs * output_tiles / product.n
    inputs = product.rows * product.k * product.item
    outputs = product.rows * product.n * product.item
    in_flight = resident * stage * max(1, tiles.num_stages - 1)
    memory = (product.weight_bytes + inputs + outputs) / _bandwidth(in_flight, programs, chip)
    cache = (row_tiles * weights + output_tiles * inputs) / (L2 * chip.bandwidth)
    operations = 2.0 * row_tiles * tiles.rows * output_tiles * tiles.outputs * product.k
    if product.dtype == "float32":
        arithmetic = operations / (0.5 * chip.single)
    else:
        # FLOP for a byte of shared memory: on an H200 64 of 128 x 128 bfloat16 reach 0.6 of the
        # data sheet's rate, and 128 x 256 reach 0.69
        density = tiles.outputs * tiles.rows / (tiles.outputs + tiles.rows) / 64
        arithmetic = operations / (chip.matmul * min(0.69, 0.6 * density))
        if product.format.kind != "dense":  # some three operations to make a float, per row tile
            made = 3.0 * row_tiles * product.n * product.k
            arithmetic += made / chip.single
    uneven = _unevenness(programs, chip)
    if programs > room * chip.multiprocessors:  # else all share the bandwidth from the first moment
        memory *= (1.0 + uneven) / 2
    work = max(memory, max(cache, arithmetic) * uneven)
    if product.rows <= 64 and product.dtype != "float32":
        inputs_of_step = max(tiles.step, CHUNK) if format.kind == "w4" else tiles.step
        steps = quotient_up(product.k, tiles.splits * inputs_of_step)
        each_step = max(ALONE[format.kind], programs / chip.multiprocessors * STEP)
        each_step *= inputs_of_step / 128 * (1.0 if product.rows <= 32 else 1.6)
        work = max(work, steps * each_step)
    handed = 8.0 * tiles.splits * product.rows * product.n / (L2 * chip.bandwidth)
    return START + work + (HANDOVER + handed if tiles.splits > 1 else 0.0)


def vector_seconds(product: Product, shape: VectorShape, splits: int, chip: Chip) -> float:
    """Of `gemv` with programs of this shape and the inputs in `splits` parts."""
    programs = quotient_up(product.n, shape.outputs) * splits
    each = product.weight_bytes / (product.n * product.k)
    in_flight = (
        min(RESIDENT, math.ceil(programs / chip.multiprocessors)) * shape.bytes * shape.outputs
    )
    memory = product.weight_bytes / _bandwidth(in_flight, programs, chip)
    # inputs, and perhaps a norm's weight, once a program, mostly from the L1 cache
    cache = (programs / splits * product.k * product.item + product.weight_bytes) / (
        L2 * chip.bandwidth
    )
    # instructions a weight: docs/triton-kernels.md; an FMA counts as two operations
    count = {"dense": 3.9, "w8": 3.5}[product.format.kind]
    arithmetic = 2 * count * product.weight_bytes / each / chip.single
    work = max(memory, cache, arithmetic) * _unevenness(programs, chip)
    return START + work + (HANDOVER if splits > 1 else 0.0)


def ranked(
    candidates: Iterable[C], seconds: Callable[[C, Chip], float], chips: Sequence[Chip]
) -> list[C]:
    """The candidates, best first: by the worst of their times on the chips, each in that of the
    chip's own best, as an artifact has one list of launches for all of its chips. Times within 5%
    count as equal, and then the order given stays.
    """
    every = list(candidates)
    best = {chip: min(seconds(each, chip) for each in every) for chip in chips}
    return sorted(every, key=lambda e: round(20 * max(seconds(e, c) / best[c] for c in chips)))


def _bandwidth(in_flight: float, programs: int, chip: Chip) -> float:
    """Bytes/s with so many bytes in flight on each multiprocessor that has programs."""
    busy = min(programs, chip.multiprocessors)
    return min(chip.bandwidth, busy * in_flight / LATENCY)


def _unevenness(programs: int, chip: Chip) -> float:
    """The most programs of a multiprocessor, in the average of them; one that shares nothing with
    others runs faster alone, so that only whole rounds beyond the first count.
    """
    average = programs / chip.multiprocessors
    return 1.0 if average <= 1 else math.ceil(average) / average
