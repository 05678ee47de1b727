"""A product of a few rows by w4 weights, on tensor cores and without shared memory: decode.

It is bound by the bytes of the weights, if it gets by with few instructions: at 4 TB/s an H200's
multiprocessor receives 36 weights a cycle and issues 128 operations. Here a weight takes about two
(docs/triton-kernels.md counts them): the weights are the left operand, whose floats
are made where they were loaded (nibbles.py), the rows are the narrow side of m16n8k16, and x comes
from the L1 cache as that instruction wants it, four bytes a thread. Weights stay 1 + q / 16; the
sum of x, by one more product, takes out what that adds:

    Σ x (q - zero) = 16 (Σ x (1 + q / 16) - 1.5 Σ x) + (8 - zero) Σ x

Scales multiply sums of a group. The warps of a program take chunks of 128 inputs in turn, each of
all the program's outputs, with the words of two chunks on their way, and are added up at the end.
"""

from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl

from graphwright.backends.triton.kernels.epilogue import (
    early_inputs,
    finish,
    finish_constants,
    weight_row,
)
from graphwright.backends.triton.kernels.kernel import ROWS, RowCount, TritonKernel, define
from graphwright.backends.triton.kernels.nibbles import nibble_floats, rounded_product
from graphwright.backends.triton.kernels.sizes import next_power_of_two, quotient_up
from graphwright.backends.triton.kernels.turned_heads import (
    TurnedHeads,
    turn_inputs,
    turn_results,
)
from graphwright.backends.triton.kernels.weight_format import WeightFormat

__all__ = ["MOST_ROWS", "FewRows", "few_rows"]

MOST_ROWS = 16


@dataclass(frozen=True)
class FewRows:
    """outputs of a program; its warps, which share the inputs."""

    outputs: int
    warps: int


@triton.jit
def left_operand(values, PARTS: tl.constexpr, OUTPUTS: tl.constexpr):
    """[outputs / 8 * parts * 8, words], made of one nibble: [PARTS, outputs, 16 inputs]."""
    by_lane = tl.reshape(values, (OUTPUTS // 8, PARTS, 8, 4, 2, 2))
    return tl.reshape(tl.permute(by_lane, (1, 0, 2, 4, 3, 5)), (PARTS, OUTPUTS, 16))


@triton.jit
def known_row(i, N: tl.constexpr, GATE: tl.constexpr, UP: tl.constexpr, TURN: tl.constexpr):
    """epilogue.weight_row; of sums beyond N that of the last one: what nobody stores may be
    anything.
    """
    return weight_row(tl.minimum(i, N - 1), GATE, UP, TURN)


@triton.jit
def of_outputs(
    values, group, first, N: tl.constexpr, GATE: tl.constexpr, UP: tl.constexpr,
    TURN: tl.constexpr, GROUPS: tl.constexpr, WHOLE: tl.constexpr, OUTPUTS: tl.constexpr,
):  # fmt: skip
    """Scales or zero points of a program's outputs, a group for each part: float32
    [parts, OUTPUTS]. Sixteen outputs at a time are so few that Triton lets those threads load
    them that need them.
    """
    if OUTPUTS == 16:
        n = known_row(first + tl.arange(0, 16), N, GATE, UP, TURN)
        at = values + n[None, :] * GROUPS + group[:, None]
        if WHOLE:
            found = tl.load(at).to(tl.float32)
        else:
            found = tl.load(at, mask=(group < GROUPS)[:, None], other=0).to(tl.float32)
    else:
        HALF: tl.constexpr = OUTPUTS // 2
        low = of_outputs(values, group, first, N, GATE, UP, TURN, GROUPS, WHOLE, HALF)
        high = of_outputs(values, group, first + HALF, N, GATE, UP, TURN, GROUPS, WHOLE, HALF)
        both = tl.permute(tl.join(low, high), (0, 2, 1))
        found = tl.reshape(both, (low.shape[0], OUTPUTS))
    return found


@triton.jit
def words_of(at, chunk, CHUNKS: tl.constexpr):
    """int32 [outputs / 8 * parts * 8, 16]: a chunk for each part; anything where there is none."""
    return tl.load(at + (chunk * 16)[:, None], mask=(chunk < CHUNKS)[:, None])


@triton.jit
def squares_of(
    x, rows, K: tl.constexpr, X_STRIDE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr
):
    """Sums of squares [ROWS] of rows of k inputs."""
    row, k = tl.arange(0, ROWS), tl.arange(0, BLOCK)
    sums = tl.zeros((ROWS, BLOCK), tl.float32)
    for start in range(0, K, BLOCK):
        mask = (row < rows)[:, None] & (start + k < K)[None, :]
        at = x + row[:, None] * X_STRIDE + (start + k)[None, :]
        value = tl.load(at, mask=mask, other=0.0).to(tl.float32)
        sums += value * value
    return tl.sum(sums, axis=1)


@triton.jit
def few_rows_kernel(
    batch, x, weight, scale, zero, norm, bias, residual, cos, sin, slots, out, k_cache, v_cache,
    N: tl.constexpr, K: tl.constexpr, KIND: tl.constexpr, GROUP: tl.constexpr,
    GROUPS: tl.constexpr, ROW: tl.constexpr, X_STRIDE: tl.constexpr,
    RESIDUAL_STRIDE: tl.constexpr, ACTIVATION: tl.constexpr, GATE: tl.constexpr, UP: tl.constexpr,
    TURN: tl.constexpr, EPS: tl.constexpr, COUNT: tl.constexpr, ROWS: tl.constexpr,
    ONE: tl.constexpr, OUTPUTS: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    if COUNT == 0 and ONE:
        rows = 1  # of a step of one token, without a trip to the L2 cache before all others
    else:
        rows = tl.load(batch + COUNT)
        if COUNT > 0:  # noqa: SIM102 - a constant, unlike the next condition
            if rows == 0:
                return
    CHUNKS: tl.constexpr = (K + 127) // 128
    WHOLE: tl.constexpr = CHUNKS % (2 * PARTS) == 0 and K % 128 == 0  # parts are alike
    first = tl.program_id(0) * OUTPUTS
    part = tl.arange(0, PARTS)
    # How Triton lays loads out follows from these shapes: 8 rows of 4 threads in a warp, a part for
    # each warp, and what is left, outputs by eights, in registers
    i = tl.arange(0, OUTPUTS * PARTS)
    own = i // 8 % PARTS
    n = known_row(first + i // (8 * PARTS) * 8 + i % 8, N, GATE, UP, TURN)
    words_at = weight.to(tl.pointer_type(tl.int32), bitcast=True)
    words_at += (n * (ROW // 4))[:, None] + tl.arange(0, 16)[None, :]
    # 16 inputs for each row, as the right operand's columns lie in a warp, two to a thread:
    # [rows / 8 * input / 8 * parts * 8 rows * input / 2 % 4, input % 2]
    i = tl.arange(0, ROWS * PARTS * 8)
    row = i // (64 * PARTS) * 8 + i // 4 % 8
    k = i // 32 % PARTS * 128 + i // (32 * PARTS) % 2 * 8 + i % 4 * 2
    k = k[:, None] + tl.arange(0, 2)[None, :]
    x_at = x + (tl.minimum(row, rows - 1) * X_STRIDE)[:, None] + k  # columns beyond are not stored
    minus = tl.full((PARTS, 16, 16), -1.5, x.dtype.element_ty)
    total = tl.zeros((PARTS, OUTPUTS, ROWS), tl.float32)
    one = words_of(words_at, own, CHUNKS)
    other = words_of(words_at, PARTS + own, CHUNKS)
    r = tl.arange(0, ROWS).to(tl.int64)
    early = early_inputs(
        r, r < rows, first, bias, residual, cos, sin, slots, N, RESIDUAL_STRIDE, GATE, UP, TURN,
        OUTPUTS, ONE,
    )  # fmt: skip
    for start in range(0, CHUNKS, 2 * PARTS):
        for which in tl.static_range(2):
            chunk = start + which * PARTS + part
            floats = nibble_floats(one if which == 0 else other, x.dtype.element_ty, False)
            later = words_of(words_at, start + (which + 2) * PARTS + own, CHUNKS)
            if which == 0:
                one = later
            else:
                other = later
            offset = tl.zeros((PARTS, 16, ROWS), tl.float32)
            sums = tl.zeros((PARTS, OUTPUTS, ROWS), tl.float32)
            for place in tl.static_range(8):
                shift = (start + which * PARTS) * 128 + 16 * place
                if WHOLE:
                    value = tl.load(x_at + shift)
                else:
                    value = tl.load(x_at + shift, mask=shift + k < K, other=0.0)
                if norm is not None:
                    if WHOLE:
                        factor = tl.load(norm + k + shift)
                    else:
                        factor = tl.load(norm + k + shift, mask=shift + k < K, other=0.0)
                    value = rounded_product(value, factor)
                value = tl.reshape(value, (ROWS // 8, 2, PARTS, 8, 4, 2))
                value = tl.reshape(tl.permute(value, (2, 1, 4, 5, 0, 3)), (PARTS, 16, ROWS))
                offset = tl.dot(minus, value, offset)
                sums = tl.dot(left_operand(floats[place], PARTS, OUTPUTS), value, sums)
                if (16 * place + 16) % GROUP == 0:
                    group = chunk * (128 // GROUP) + 16 * place // GROUP
                    factor = of_outputs(
                        scale, group, first, N, GATE, UP, TURN, GROUPS, WHOLE, OUTPUTS
                    )
                    offsets = tl.broadcast_to(
                        offset[:, None, :, :], (PARTS, OUTPUTS // 16, 16, ROWS)
                    )
                    offsets = tl.reshape(offsets, (PARTS, OUTPUTS, ROWS))
                    if zero is not None:
                        point = of_outputs(
                            zero, group, first, N, GATE, UP, TURN, GROUPS, WHOLE, OUTPUTS
                        )
                        offsets *= (point / 24.0 + (2.0 / 3.0))[:, :, None]
                    total += (sums + offsets) * factor[:, :, None]
                    offset = tl.zeros((PARTS, 16, ROWS), tl.float32)
                    sums = tl.zeros((PARTS, OUTPUTS, ROWS), tl.float32)
    result = tl.trans(tl.sum(total, axis=0) * 16.0)
    if norm is not None:
        if ONE:
            squares = tl.sum(squares_of(x, rows, K, X_STRIDE, 1, 256 * PARTS), axis=0)
            result = result * tl.rsqrt(squares / K + EPS)
        else:
            squares = squares_of(x, rows, K, X_STRIDE, ROWS, 32 * PARTS)
            result = result * tl.rsqrt(squares / K + EPS)[:, None]
    finish(
        result, early, r, r < rows, first, bias, residual, cos, sin, slots, out, k_cache, v_cache,
        N, RESIDUAL_STRIDE, ACTIVATION, GATE, UP, TURN, ONE,
    )  # fmt: skip


def few_rows(
    n: int, k: int, format: WeightFormat, shape: FewRows, most: int, *, x_stride: int,
    norm: str | None = None, eps: float = 0.0, bias: str | None = None,
    residual_stride: int | None = None, activation: str = "none",
    gate: tuple[int, int] | None = None, turn: TurnedHeads | None = None,
    dtype: str = "bfloat16", rows: RowCount = "T",
) -> TritonKernel:  # fmt: skip
    """What `linear` computes, for buckets of up to `most` <= 16 rows, of a w4 weight. Buckets of 2
    to 8 rows share a kernel.

    Pointers: batch, x (rows of k), weight, scale, (zero), (norm [k]), (bias [N]), (residual), (of
    `turn` cos, sin, slots), out [rows, N], (of `turn` k_cache, v_cache).
    """
    assert format.kind == "w4" and most <= MOST_ROWS
    assert x_stride >= k and n * format.row_bytes(k) < 2**31
    columns = max(8, next_power_of_two(most))
    return define(
        "few_rows_w4",
        few_rows_kernel,
        {
            "batch": "int32", "x": dtype, **format.pointers(), "norm": norm, "bias": bias,
            "residual": None if residual_stride is None else dtype, **turn_inputs(turn),
            "out": dtype, **turn_results(turn),
        },
        format.constants(k)
        | finish_constants(n, activation, gate, turn, residual=residual_stride is not None)
        | {
            "X_STRIDE": x_stride, "RESIDUAL_STRIDE": residual_stride or 0, "EPS": eps,
            "COUNT": ROWS[rows], "ROWS": columns, "ONE": most == 1, "OUTPUTS": shape.outputs,
            "PARTS": shape.warps,
        },
        grid=lambda size: (quotient_up(n, shape.outputs), 1, 1),
        num_warps=shape.warps,
    )  # fmt: skip
