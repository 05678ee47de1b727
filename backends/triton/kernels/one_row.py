"""The product of a single row by w4 weights, on tensor cores: decode of one sequence.

It is bound by the bytes of the weights, if they are always on their way. A program takes tiles of
outputs in turn, and asks for the words of its next step before it multiplies those of this one; the
first ones it asks for before it waits for the launch in front (early.py). The row is normed once by
a program, into shared memory, where its warps find it as tensor cores want it (shared_row.py).
nibble_rows.py has the arithmetic.
"""

from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl

from graphwright.backends.triton.kernels.early import let_next_begin, wait_for_inputs
from graphwright.backends.triton.kernels.epilogue import early_inputs, finish, finish_constants
from graphwright.backends.triton.kernels.kernel import ROWS, RowCount, TritonKernel, define
from graphwright.backends.triton.kernels.nibble_rows import (
    left_operand,
    minus_zero,
    result_of,
    scale_of,
    scales_of,
    with_group,
    words_of,
)
from graphwright.backends.triton.kernels.nibbles import nibble_floats
from graphwright.backends.triton.kernels.shared_row import (
    MOST_INPUTS,
    put_row,
    take_chunk,
    take_sum,
)
from graphwright.backends.triton.kernels.sizes import quotient_up
from graphwright.backends.triton.kernels.turned_heads import (
    TurnedHeads,
    turn_inputs,
    turn_results,
)
from graphwright.backends.triton.kernels.weight_format import WeightFormat

__all__ = ["OneRow", "one_row"]


@dataclass(frozen=True)
class OneRow:
    """outputs of a tile; warps of a program, which share the inputs; resident: programs that a
    multiprocessor's registers must have room for; programs that take tiles in turn, 0: one for each
    tile; depth: steps of a chunk for each warp that are asked for at once, 1 or 2.
    """

    outputs: int
    warps: int
    resident: int = 1
    programs: int = 0
    depth: int = 1

    @property
    def registers(self) -> int:
        """The most that a thread may have."""
        return min(255, (1 << 16) // (32 * self.warps * self.resident) // 8 * 8)


@triton.jit
def even(x):
    """Of [.., .., columns] that are alike, every other one."""
    one, _ = tl.split(tl.reshape(x, (x.shape[0], x.shape[1], x.shape[2] // 2, 2)))
    return one


@triton.jit
def asked_for(
    scale, at, own, chunk, first, N: tl.constexpr, GATE: tl.constexpr, UP: tl.constexpr,
    TURN: tl.constexpr, GROUP: tl.constexpr, GROUPS: tl.constexpr, OUTPUTS: tl.constexpr,
    PARTS: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    """(words, scales) of a chunk for each part, chunk and what is behind it; scales of whole chunks
    only, others would be too many. Of chunks behind the last the words are any.
    """
    words = tl.load(at + (tl.minimum(chunk + own, CHUNKS - 1) * 128)[:, None])
    if GROUP == 128:
        scales = scale_of(
            scale, chunk + tl.arange(0, PARTS), first, N, GATE, UP, TURN, GROUPS, OUTPUTS
        )
    else:
        scales = 0.0
    return words, scales


@triton.jit
def all_asked_for(
    scale, at, own, chunk, first, N: tl.constexpr, GATE: tl.constexpr, UP: tl.constexpr,
    TURN: tl.constexpr, GROUP: tl.constexpr, GROUPS: tl.constexpr, OUTPUTS: tl.constexpr,
    PARTS: tl.constexpr, CHUNKS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """asked_for of the DEPTH steps from a chunk on: a tuple."""
    one = asked_for(
        scale, at, own, chunk, first, N, GATE, UP, TURN, GROUP, GROUPS, OUTPUTS, PARTS, CHUNKS
    )
    if DEPTH == 1:
        return (one,)
    else:
        other = asked_for(
            scale, at, own, chunk + PARTS, first, N, GATE, UP, TURN, GROUP, GROUPS, OUTPUTS, PARTS,
            CHUNKS,
        )  # fmt: skip
        return one, other


@triton.jit
def with_step(
    total, asked, shared, x, norm, scale, zero, step, first, N: tl.constexpr,
    K: tl.constexpr, GATE: tl.constexpr, UP: tl.constexpr, TURN: tl.constexpr, GROUP: tl.constexpr,
    GROUPS: tl.constexpr, LENGTH: tl.constexpr,
):  # fmt: skip
    """total [parts, outputs, 4] + what a chunk for each part adds, of which `asked` was."""
    PARTS: tl.constexpr = total.shape[0]
    OUTPUTS: tl.constexpr = total.shape[1]
    kind: tl.constexpr = x.dtype.element_ty
    chunk = step * PARTS + tl.arange(0, PARTS)
    words = asked[0]
    if GROUP == 128:
        scales = (asked[1],)
    else:
        scales = scales_of(scale, chunk, first, N, GATE, UP, TURN, GROUP, GROUPS, OUTPUTS)
    values = take_chunk(shared, x, norm, step * PARTS, K, PARTS)
    floats = nibble_floats(words, kind, False)
    sums = tl.zeros((PARTS, OUTPUTS, 8), tl.float32)
    for place in tl.static_range(8):
        value = tl.reshape(values[place], (PARTS, 8, 4, 2, 2))
        value = tl.reshape(tl.permute(value, (0, 4, 2, 3, 1)), (PARTS, 16, 8))
        sums = tl.dot(left_operand(floats[place], PARTS, OUTPUTS), value, sums)
        if (16 * place + 16) % GROUP == 0:
            group = chunk * (128 // GROUP) + 16 * place // GROUP
            offset = take_sum(shared, x, norm, group, K, LENGTH, GROUP) * minus_zero(kind)
            total = with_group(
                total, even(sums), offset[:, None, None], scales[16 * place // GROUP], zero, group,
                first, N, GATE, UP, TURN, GROUPS, K == LENGTH, kind,
            )  # fmt: skip
            sums = tl.zeros((PARTS, OUTPUTS, 8), tl.float32)
    return total


@triton.jit
def with_turn(
    total, asked, shared, x, norm, scale, zero, turn, first, N: tl.constexpr, K: tl.constexpr,
    GATE: tl.constexpr, UP: tl.constexpr, TURN: tl.constexpr, GROUP: tl.constexpr,
    GROUPS: tl.constexpr, LENGTH: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """with_step of the DEPTH steps of a turn, for which all_asked_for has asked."""
    for i in tl.static_range(DEPTH):
        total = with_step(
            total, asked[i], shared, x, norm, scale, zero, turn * DEPTH + i, first, N, K, GATE, UP,
            TURN, GROUP, GROUPS, LENGTH,
        )  # fmt: skip
    return total


@triton.jit
def one_row_kernel(
    batch, x, weight, scale, zero, norm, bias, residual, cos, sin, slots, out, k_cache, v_cache,
    N: tl.constexpr, K: tl.constexpr, KIND: tl.constexpr, GROUP: tl.constexpr,
    GROUPS: tl.constexpr, ROW: tl.constexpr, ACTIVATION: tl.constexpr, GATE: tl.constexpr,
    UP: tl.constexpr, TURN: tl.constexpr, EPS: tl.constexpr, COUNT: tl.constexpr,
    OUTPUTS: tl.constexpr, PARTS: tl.constexpr, DEPTH: tl.constexpr, ONCE: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    let_next_begin(EARLY)
    CHUNKS: tl.constexpr = (K + 127) // 128
    TURNS: tl.constexpr = (CHUNKS + DEPTH * PARTS - 1) // (DEPTH * PARTS)
    SPAN: tl.constexpr = DEPTH * PARTS  # chunks of a turn
    LENGTH: tl.constexpr = TURNS * SPAN * 128
    BLOCK: tl.constexpr = PARTS * (256 if TURNS * DEPTH % 2 == 0 else 128)
    TILES: tl.constexpr = (N + OUTPUTS - 1) // OUTPUTS
    kind: tl.constexpr = x.dtype.element_ty
    first = tl.program_id(0) * OUTPUTS
    own, at = words_of(weight, first, N, ROW, GATE, UP, TURN, OUTPUTS, PARTS)
    asked = all_asked_for(
        scale, at, own, 0, first, N, GATE, UP, TURN, GROUP, GROUPS, OUTPUTS, PARTS, CHUNKS, DEPTH
    )
    wait_for_inputs(EARLY)
    if COUNT > 0:  # noqa: SIM102 - a step has a token, but perhaps no sampled row
        if tl.load(batch + COUNT) == 0:
            return
    shared, squares = put_row(x, norm, K, LENGTH, GROUP, BLOCK)
    row = tl.arange(0, 4).to(tl.int64)
    for tile in tl.range(tl.program_id(0), TILES, tl.num_programs(0), num_stages=1):
        first = tile * OUTPUTS
        early = early_inputs(
            row, row < 1, first, bias, residual, cos, sin, slots, N, 0, GATE, UP, TURN, OUTPUTS,
            True,
        )  # fmt: skip
        following, next_at = first, at
        if not ONCE:
            following = tl.minimum(tile + tl.num_programs(0), TILES - 1) * OUTPUTS
            _, next_at = words_of(weight, following, N, ROW, GATE, UP, TURN, OUTPUTS, PARTS)
        total = tl.zeros((PARTS, OUTPUTS, 4), tl.float32)
        if TURNS <= 2:  # unrolled, more turns would ask for too much at once
            for turn in tl.static_range(TURNS):
                held = asked
                if turn + 1 < TURNS:
                    asked = all_asked_for(
                        scale, at, own, (turn + 1) * SPAN, first, N, GATE, UP, TURN, GROUP, GROUPS,
                        OUTPUTS, PARTS, CHUNKS, DEPTH,
                    )  # fmt: skip
                elif not ONCE:
                    asked = all_asked_for(
                        scale, next_at, own, 0, following, N, GATE, UP, TURN, GROUP, GROUPS,
                        OUTPUTS, PARTS, CHUNKS, DEPTH,
                    )  # fmt: skip
                total = with_turn(
                    total, held, shared, x, norm, scale, zero, turn, first, N, K, GATE, UP, TURN,
                    GROUP, GROUPS, LENGTH, DEPTH,
                )  # fmt: skip
        else:
            for turn in tl.range(0, TURNS, num_stages=1):
                held = asked
                last = turn + 1 == TURNS
                asked = all_asked_for(
                    scale, tl.where(last, next_at, at), own, tl.where(last, 0, (turn + 1) * SPAN),
                    tl.where(last, following, first), N, GATE, UP, TURN, GROUP, GROUPS, OUTPUTS,
                    PARTS, CHUNKS, DEPTH,
                )  # fmt: skip
                total = with_turn(
                    total, held, shared, x, norm, scale, zero, turn, first, N, K, GATE, UP, TURN,
                    GROUP, GROUPS, LENGTH, DEPTH,
                )  # fmt: skip
        at = next_at
        result = result_of(total, GATE, UP, TURN, kind)
        if norm is not None:
            result = result * tl.rsqrt(squares / K + EPS)
        finish(
            result, early, row, row < 1, first, bias, residual, cos, sin, slots, out, k_cache,
            v_cache, N, 0, ACTIVATION, GATE, UP, TURN, True,
        )  # fmt: skip


def one_row(
    n: int, k: int, format: WeightFormat, shape: OneRow, *, norm: str | None = None,
    eps: float = 0.0, bias: str | None = None, residual: bool = False, activation: str = "none",
    gate: tuple[int, int] | None = None, turn: TurnedHeads | None = None,
    dtype: str = "bfloat16", rows: RowCount = "T",
) -> TritonKernel:  # fmt: skip
    """What `linear` computes, for buckets of one row, of a w4 weight and at most MOST_INPUTS
    inputs; x must begin at a multiple of 4 bytes, and so must norm.

    Pointers: batch, x [k], weight, scale, (zero), (norm [k]), (bias [N]), (residual [N]), (of
    `turn` cos, sin, slots), out [N], (of `turn` k_cache, v_cache).
    """
    assert format.kind == "w4" and k <= MOST_INPUTS and format.weight_bytes(n, k) < 2**31
    tiles = quotient_up(n, shape.outputs)
    programs = min(tiles, shape.programs or tiles)
    return define(
        "one_row_w4",
        one_row_kernel,
        {
            "batch": "int32", "x": dtype, **format.pointers(), "norm": norm, "bias": bias,
            "residual": dtype if residual else None, **turn_inputs(turn), "out": dtype,
            **turn_results(turn),
        },
        format.constants(k)
        | finish_constants(n, activation, gate, turn, residual=residual)
        | {
            "EPS": eps, "COUNT": ROWS[rows], "OUTPUTS": shape.outputs, "PARTS": shape.warps,
            "DEPTH": shape.depth, "ONCE": programs == tiles,
        },
        grid=lambda size: (programs, 1, 1),
        num_warps=shape.warps,
        most_registers=shape.registers,
    )  # fmt: skip
