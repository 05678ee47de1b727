"""A product of a few rows by w4 weights, on tensor cores: decode of a few sequences.

The weights are as in one_row.py, but rows of x, whose parts differ for each thread, come through
shared memory like the words of weights do, and from there as tensor cores want them. Rows were
normed before: here every program would do it again. nibble_rows.py has the arithmetic.
"""

from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl

from graphwright.backends.triton.kernels.epilogue import early_inputs, finish, finish_constants
from graphwright.backends.triton.kernels.kernel import ROWS, RowCount, TritonKernel, define
from graphwright.backends.triton.kernels.nibble_rows import (
    left_operand,
    offset_of,
    result_of,
    scales_of,
    with_group,
    words_of,
)
from graphwright.backends.triton.kernels.nibbles import nibble_floats
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
    """outputs of a program; its warps, which share the inputs; stages: chunks of each warp's
    inputs that are on their way, and one more.
    """

    outputs: int
    warps: int
    stages: int = 3


@triton.jit
def runs_of(
    floats, FIRST: tl.constexpr, COUNT: tl.constexpr, PARTS: tl.constexpr, OUTPUTS: tl.constexpr
):
    """left_operand of COUNT nibbles from FIRST on: [PARTS, OUTPUTS, 16 * COUNT]."""
    if COUNT == 1:
        return left_operand(floats[FIRST], PARTS, OUTPUTS)
    else:
        HALF: tl.constexpr = COUNT // 2
        low = runs_of(floats, FIRST, HALF, PARTS, OUTPUTS)
        high = runs_of(floats, FIRST + HALF, HALF, PARTS, OUTPUTS)
        both = tl.permute(tl.join(low, high), (0, 1, 3, 2))
        return tl.reshape(both, (PARTS, OUTPUTS, 16 * COUNT))


@triton.jit
def few_rows_kernel(
    batch, x, weight, scale, zero, bias, residual, cos, sin, slots, out, k_cache, v_cache,
    N: tl.constexpr, K: tl.constexpr, KIND: tl.constexpr, GROUP: tl.constexpr,
    GROUPS: tl.constexpr, ROW: tl.constexpr, X_STRIDE: tl.constexpr,
    RESIDUAL_STRIDE: tl.constexpr, ACTIVATION: tl.constexpr, GATE: tl.constexpr, UP: tl.constexpr,
    TURN: tl.constexpr, COUNT: tl.constexpr, ROWS: tl.constexpr, OUTPUTS: tl.constexpr,
    PARTS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    rows = tl.load(batch + COUNT)
    if COUNT > 0:  # noqa: SIM102 - a step has tokens, but perhaps no sampled row
        if rows == 0:
            return
    CHUNKS: tl.constexpr = (K + 127) // 128
    WHOLE: tl.constexpr = CHUNKS % PARTS == 0 and K % 128 == 0  # parts are alike
    RUNS: tl.constexpr = GROUP // 16
    kind: tl.constexpr = x.dtype.element_ty
    first = tl.program_id(0) * OUTPUTS
    part = tl.arange(0, PARTS)
    own, words_at = words_of(weight, first, N, ROW, GATE, UP, TURN, OUTPUTS, PARTS)
    row = tl.minimum(tl.arange(0, ROWS), rows - 1)  # columns beyond are not stored
    k = (part * 128)[:, None, None] + tl.arange(0, GROUP)[None, None, :]
    x_at = x + (row * X_STRIDE)[None, :, None] + k
    total = tl.zeros((PARTS, OUTPUTS, ROWS), tl.float32)
    r = tl.arange(0, ROWS).to(tl.int64)
    for start in tl.range(0, CHUNKS, PARTS, num_stages=STAGES):
        chunk = start + part
        scales = scales_of(scale, chunk, first, N, GATE, UP, TURN, GROUP, GROUPS, OUTPUTS)
        # of chunks behind the last the words are any, and the scales are zero
        words = tl.load(words_at + (tl.minimum(start + own, CHUNKS - 1) * 128)[:, None])
        floats = nibble_floats(words, kind, False)
        for share in tl.static_range(128 // GROUP):
            shift = start * 128 + share * GROUP
            if WHOLE:
                value = tl.load(x_at + shift)
            else:
                value = tl.load(x_at + shift, mask=shift + k < K, other=0.0)
            value = tl.permute(value, (0, 2, 1))
            sums = tl.dot(runs_of(floats, share * RUNS, RUNS, PARTS, OUTPUTS), value)
            group = chunk * (128 // GROUP) + share
            total = with_group(
                total, sums, offset_of(value, OUTPUTS), scales[share], zero, group, first, N, GATE,
                UP, TURN, GROUPS, WHOLE, kind,
            )  # fmt: skip
    result = result_of(total, GATE, UP, TURN, kind)
    early = early_inputs(
        r, r < rows, first, bias, residual, cos, sin, slots, N, RESIDUAL_STRIDE, GATE, UP, TURN,
        OUTPUTS, False,
    )  # fmt: skip
    finish(
        result, early, r, r < rows, first, bias, residual, cos, sin, slots, out, k_cache, v_cache,
        N, RESIDUAL_STRIDE, ACTIVATION, GATE, UP, TURN, False,
    )  # fmt: skip


def few_rows(
    n: int, k: int, format: WeightFormat, shape: FewRows, most: int, *, x_stride: int,
    bias: str | None = None, residual_stride: int | None = None, activation: str = "none",
    gate: tuple[int, int] | None = None, turn: TurnedHeads | None = None,
    dtype: str = "bfloat16", rows: RowCount = "T",
) -> TritonKernel:  # fmt: skip
    """What `linear` computes, for buckets of up to `most` <= 16 rows, of a w4 weight. Buckets of up
    to 8 rows share a kernel.

    Pointers: batch, x (rows of k), weight, scale, (zero), (bias [N]), (residual), (of `turn` cos,
    sin, slots), out [rows, N], (of `turn` k_cache, v_cache).
    """
    assert format.kind == "w4" and most <= MOST_ROWS
    assert x_stride >= k and format.weight_bytes(n, k) < 2**31
    given = {
        "batch": "int32", "x": dtype, **format.pointers(), "bias": bias,
        "residual": None if residual_stride is None else dtype, **turn_inputs(turn),
        "out": dtype, **turn_results(turn),
    }  # fmt: skip
    return define(
        "few_rows_w4",
        few_rows_kernel,
        given,
        format.constants(k)
        | finish_constants(n, activation, gate, turn, residual=residual_stride is not None)
        | {
            "X_STRIDE": x_stride, "RESIDUAL_STRIDE": residual_stride or 0, "COUNT": ROWS[rows],
            "ROWS": max(8, next_power_of_two(most)), "OUTPUTS": shape.outputs,
            "PARTS": shape.warps, "STAGES": shape.stages,
        },
        grid=lambda size: (quotient_up(n, shape.outputs), 1, 1),
        num_warps=shape.warps,
    )  # fmt: skip
