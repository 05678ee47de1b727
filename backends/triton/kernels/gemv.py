"""The product of a single row, by floats or weights of eight bits: decode of one sequence.

It is bound by the bytes of the weights. A program multiplies a few outputs and some thousand
inputs at once, without tensor cores and shared memory: each thread has several loads of 16 bytes
in flight, 4 to 8 KB a program, and eight programs a multiprocessor cover a latency of 0.8 µs at
4 TB/s, which takes 25 KB. Scales multiply sums of a group. Weights of four bits would cost too many
instructions so: few_rows.py multiplies those.
"""

from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl

from graphwright.backends.triton.kernels.epilogue import (
    early_inputs,
    finish,
    finish_constants,
    is_last,
    weight_rows,
)
from graphwright.backends.triton.kernels.kernel import ROWS, RowCount, TritonKernel, define
from graphwright.backends.triton.kernels.sizes import next_power_of_two, quotient_up
from graphwright.backends.triton.kernels.turned_heads import (
    TurnedHeads,
    turn_inputs,
    turn_results,
)
from graphwright.backends.triton.kernels.weight_format import WeightFormat

__all__ = ["VectorShape", "gemv", "gemv_scratch", "most_gemv_splits", "vector_shape"]


MANY = 16384  # outputs of which eight warps for two at a time are enough programs


@dataclass(frozen=True)
class VectorShape:
    """outputs of a program; bytes of each one's row of weights in a step; warps."""

    outputs: int
    bytes: int
    warps: int = 4


@triton.jit
def inputs_of(x, norm, k, last, squares):
    """(inputs k as float32, times the norm's weight if there is one; squares + their squares)."""
    value = tl.load(x + k, mask=k < last, other=0.0).to(tl.float32)
    if norm is not None:
        squares += value * value
        value = value * tl.load(norm + k, mask=k < last, other=0.0).to(tl.float32)
    return value, squares


@triton.jit
def gemv_kernel(
    batch, x, weight, scale, norm, bias, residual, cos, sin, slots, partial, counters, out, k_cache,
    v_cache, N: tl.constexpr, K: tl.constexpr, KIND: tl.constexpr, GROUP: tl.constexpr,
    GROUPS: tl.constexpr, ROW: tl.constexpr, ACTIVATION: tl.constexpr, GATE: tl.constexpr,
    UP: tl.constexpr, TURN: tl.constexpr, EPS: tl.constexpr, COUNT: tl.constexpr,
    SPLITS: tl.constexpr, PART: tl.constexpr, OUTPUTS: tl.constexpr, STEP: tl.constexpr,
    TILE: tl.constexpr,
):  # fmt: skip
    if COUNT > 0:  # noqa: SIM102 - a step has a token, but perhaps no sampled row
        if tl.load(batch + COUNT) == 0:
            return
    tile, split = tl.program_id(0), tl.program_id(1)
    row = tl.arange(0, 1).to(tl.int64)
    BEFORE: tl.constexpr = OUTPUTS <= 4
    early = early_inputs(
        row, row == 0, tile * OUTPUTS, bias, residual, cos, sin, slots, N, 0, GATE, UP, TURN,
        OUTPUTS, BEFORE,
    )  # fmt: skip
    n, n_inside = weight_rows(tile * OUTPUTS, N, GATE, UP, TURN, OUTPUTS)
    if SPLITS == 1:
        first, last = 0, K
    else:
        first = split * PART
        last = tl.minimum(first + PART, K)
    if GROUP > 0:
        j = tl.arange(0, GROUP)
        total = tl.zeros((OUTPUTS, TILE), tl.float32)
        squares = tl.zeros((TILE, GROUP), tl.float32)
        for start in range(first, last, STEP):
            group = start // GROUP + tl.arange(0, TILE)
            k = group[:, None] * GROUP + j[None, :]
            known = n_inside[:, None, None] & (k < last)[None, :, :]
            at = n[:, None, None] * ROW + k[None, :, :]
            q = tl.load(weight + at, mask=known, other=0).to(tl.float32)
            value, squares = inputs_of(x, norm, k, last, squares)
            inside = n_inside[:, None] & (group < GROUPS)[None, :]
            place = n[:, None] * GROUPS + group[None, :]
            factor = tl.load(scale + place, mask=inside, other=0.0)
            total += factor * tl.sum(q * value[None, :, :], axis=2)
        square = tl.sum(tl.sum(squares, axis=1), axis=0)
        result = tl.sum(total, axis=1)
    else:
        sums = tl.zeros((OUTPUTS, STEP), tl.float32)
        squares = tl.zeros((STEP,), tl.float32)
        for start in range(first, last, STEP):
            k = start + tl.arange(0, STEP)
            known = n_inside[:, None] & (k < last)[None, :]
            w = tl.load(weight + n[:, None] * ROW + k[None, :], mask=known, other=0)
            value, squares = inputs_of(x, norm, k, last, squares)
            sums += w.to(tl.float32) * value[None, :]
        square = tl.sum(squares, axis=0)
        result = tl.sum(sums, axis=1)
        if KIND == "w8":
            result = result * tl.load(scale + n, mask=n_inside, other=0.0)
    done = True
    if SPLITS > 1:
        tiles = tl.num_programs(0)
        part_at = partial + tile * (SPLITS * OUTPUTS) + tl.arange(0, OUTPUTS)
        square_at = partial + tiles * (SPLITS * OUTPUTS) + tile * SPLITS
        tl.store(part_at + split * OUTPUTS, result)
        if norm is not None:
            tl.store(square_at + split, square)
        done = is_last(counters + tile, SPLITS)
        if done:
            result = tl.zeros((OUTPUTS,), tl.float32)
            square = tl.full((), 0.0, tl.float32)
            for part in tl.static_range(SPLITS):
                result += tl.load(part_at + part * OUTPUTS, cache_modifier=".cg")
                if norm is not None:
                    square += tl.load(square_at + part, cache_modifier=".cg")
    if done:
        if norm is not None:
            result = result * tl.rsqrt(square / K + EPS)
        finish(
            result[None, :], early, row, row == 0, tile * OUTPUTS, bias, residual, cos, sin, slots,
            out, k_cache, v_cache, N, 0, ACTIVATION, GATE, UP, TURN, BEFORE,
        )  # fmt: skip


def vector_shape(n: int, format: WeightFormat, dtype: str) -> VectorShape:
    """What was fastest on an H200 for n outputs (docs/performance-gpu.md): floats are bound by
    memory, which long runs of few rows read best; making floats of integers costs instructions,
    those for inputs too, which more outputs share where there are enough of them.

    float32 is for checking, and few large programs are checked sooner.
    """
    if dtype == "float32":
        return VectorShape(32, 1024)
    if format.kind == "dense":
        return VectorShape(2, 4096, warps=8) if n >= MANY else VectorShape(4, 2048, warps=2)
    return VectorShape(2, 2048) if n <= 4096 else VectorShape(16, 512)


def most_gemv_splits(n: int, k: int, format: WeightFormat, dtype: str) -> int:
    """Parts that k inputs may be cut into, of two steps at least."""
    return max(1, min(8, k // (2 * _step(k, format, vector_shape(n, format, dtype)))))


def gemv(
    n: int, k: int, format: WeightFormat, splits: int, *, norm: str | None = None,
    eps: float = 0.0, bias: str | None = None, residual: bool = False, activation: str = "none",
    gate: tuple[int, int] | None = None, turn: TurnedHeads | None = None,
    dtype: str = "float32", rows: RowCount = "T",
) -> TritonKernel:  # fmt: skip
    """What `linear` computes, for buckets of one row, from float activations.

    Pointers: batch, x [k], weight, (scale), (norm [k]), (bias [N]), (residual [N]), (of `turn` cos,
    sin, slots), (for splits > 1: partial float32, counters int32 as in `linear`, of
    `gemv_scratch`), out [N], (of `turn` k_cache, v_cache).
    """
    assert format.kind != "w4" and n * k < 2**31
    shape = vector_shape(n, format, dtype)
    step, outputs = _step(k, format, shape), shape.outputs
    several = splits > 1
    weights = {name: kind for name, kind in format.pointers().items() if name != "zero"}
    return define(
        f"gemv_{format.kind}",
        gemv_kernel,
        {
            "batch": "int32", "x": dtype, **weights, "norm": norm, "bias": bias,
            "residual": dtype if residual else None, **turn_inputs(turn),
            "partial": "float32" if several else None, "counters": "int32" if several else None,
            "out": dtype, **turn_results(turn),
        },
        format.constants(k)
        | finish_constants(n, activation, gate, turn, residual=residual)
        | {
            "EPS": eps, "COUNT": ROWS[rows], "SPLITS": splits,
            "PART": quotient_up(quotient_up(k, step), splits) * step, "OUTPUTS": outputs,
            "STEP": step, "TILE": step // (format.group or step),
        },
        grid=lambda size: (quotient_up(n, outputs), splits, 1),
        num_warps=shape.warps,
    )  # fmt: skip


def gemv_scratch(n: int, format: WeightFormat, splits: int, dtype: str) -> tuple[int, int]:
    """Bytes of `partial` and `counters`; (0, 0) without splits."""
    outputs = vector_shape(n, format, dtype).outputs
    tiles = quotient_up(n, outputs)
    return (4 * tiles * splits * (outputs + 1), 4 * tiles) if splits > 1 else (0, 0)


def _step(k: int, format: WeightFormat, shape: VectorShape) -> int:
    """Inputs taken together: the shape's bytes of a row of weights, a whole number of groups."""
    wide = shape.bytes // 2 if format.kind == "dense" else shape.bytes
    least = max(format.group, 16)
    return max(least, min(wide, next_power_of_two(k)))
