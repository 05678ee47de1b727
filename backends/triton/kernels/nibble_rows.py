"""What products of one row and of a few rows by w4 weights share.

The weights are the left operand of m16n8k16, whose floats are made in the registers of the thread
that has the words (nibbles.py), the rows are its narrow side. Weights stay w = BASE + UNIT q, in
bfloat16 128 + q, in float16 1 + q / 16; the sum of x takes out what that adds:

    Σ x (q - zero) = (Σ x w - (BASE + 8 UNIT) Σ x) / UNIT + (8 - zero) Σ x

Scales multiply sums of a group. The warps of a program take chunks of 128 inputs in turn, a part
for each, of all the program's outputs, and are added up at the end. Rows of a tile are sums in
the order of `sum_of` until then.
"""

from __future__ import annotations

import triton
import triton.language as tl

from graphwright.backends.triton.kernels.direct_loads import load_bytes, load_halves
from graphwright.backends.triton.kernels.epilogue import weight_row
from graphwright.backends.triton.kernels.nibbles import place_of_row
from graphwright.backends.triton.kernels.turned_heads import INTERLEAVED

__all__ = ["known_row", "left_operand", "minus_zero", "offset_of", "result_of", "scale_of",
           "scales_of", "with_group", "words_of"]  # fmt: skip


@triton.jit
def left_operand(values, PARTS: tl.constexpr, OUTPUTS: tl.constexpr):
    """[outputs / 8 * parts * 8, 16], a run of nibble_floats: [PARTS, outputs, 16 inputs]."""
    by_lane = tl.reshape(values, (OUTPUTS // 8, PARTS, 8, 4, 2, 2))
    return tl.reshape(tl.permute(by_lane, (1, 0, 2, 4, 3, 5)), (PARTS, OUTPUTS, 16))


@triton.jit
def known_row(i, N: tl.constexpr, GATE: tl.constexpr, UP: tl.constexpr, TURN: tl.constexpr):
    """epilogue.weight_row; of sums beyond N that of the last one: what nobody stores may be
    anything.
    """
    return weight_row(tl.minimum(i, N - 1), GATE, UP, TURN)


@triton.jit
def in_turn(GATE: tl.constexpr, UP: tl.constexpr, TURN: tl.constexpr):
    """Are the rows of sums that belong in pairs far apart in the weight?"""
    if TURN is None:
        return GATE != UP
    else:
        return not TURN[INTERLEAVED]


@triton.jit
def sum_of(r, GATE: tl.constexpr, UP: tl.constexpr, TURN: tl.constexpr):
    """The sum that row r of a tile holds, so that eight rows are an octet of the weight: where its
    rows come in turn, of sixteen sums the even ones first.
    """
    i = r
    if in_turn(GATE, UP, TURN):
        i = r // 16 * 16 + r % 8 * 2 + r // 8 % 2
    return i


@triton.jit
def words_of(
    weight, first, N: tl.constexpr, ROW: tl.constexpr, GATE: tl.constexpr, UP: tl.constexpr,
    TURN: tl.constexpr, OUTPUTS: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """(part of each line, pointers to int32 [outputs / 8 * parts * 8, 16]: its row's first chunk).

    How Triton lays loads out follows from these shapes: 8 rows of 4 threads in a warp, a part for
    each warp, and what is left, outputs by eights, in registers.
    """
    i = tl.arange(0, OUTPUTS * PARTS)
    r = sum_of(i // (8 * PARTS) * 8 + i % 8, GATE, UP, TURN)
    n = known_row(first + r, N, GATE, UP, TURN)
    at = (weight + place_of_row(n, ROW)).to(tl.pointer_type(tl.int32), bitcast=True)[:, None]
    return i // 8 % PARTS, at + tl.arange(0, 16)[None, :]


@triton.jit
def of_outputs(
    values, group, first, N: tl.constexpr, GATE: tl.constexpr, UP: tl.constexpr,
    TURN: tl.constexpr, GROUPS: tl.constexpr, OUTPUTS: tl.constexpr,
):  # fmt: skip
    """Scales (float16) or zero points of a program's outputs, a group for each part, of groups
    there are: float32 [parts, OUTPUTS]. Sixteen outputs at a time are so few that Triton lets those
    threads load them that need them.
    """
    if OUTPUTS == 16:
        n = known_row(first + sum_of(tl.arange(0, 16), GATE, UP, TURN), N, GATE, UP, TURN)
        at = values + n[None, :] * GROUPS + group[:, None]
        if values.dtype.element_ty == tl.float16:
            found = load_halves(at)
        else:
            found = load_bytes(at)
    else:
        HALF: tl.constexpr = OUTPUTS // 2
        low = of_outputs(values, group, first, N, GATE, UP, TURN, GROUPS, HALF)
        high = of_outputs(values, group, first + HALF, N, GATE, UP, TURN, GROUPS, HALF)
        both = tl.permute(tl.join(low, high), (0, 2, 1))
        found = tl.reshape(both, (low.shape[0], OUTPUTS))
    return found


@triton.jit
def scale_of(
    scale, group, first, N: tl.constexpr, GATE: tl.constexpr, UP: tl.constexpr,
    TURN: tl.constexpr, GROUPS: tl.constexpr, OUTPUTS: tl.constexpr,
):  # fmt: skip
    """of_outputs of a group for each part; behind the last group, of that one."""
    return of_outputs(
        scale, tl.minimum(group, GROUPS - 1), first, N, GATE, UP, TURN, GROUPS, OUTPUTS
    )


@triton.jit
def scales_of(
    scale, chunk, first, N: tl.constexpr, GATE: tl.constexpr, UP: tl.constexpr,
    TURN: tl.constexpr, GROUP: tl.constexpr, GROUPS: tl.constexpr, OUTPUTS: tl.constexpr,
):  # fmt: skip
    """scale_of the one, two or four groups of a chunk for each part: a tuple."""
    group = chunk * (128 // GROUP)
    if GROUP == 128:
        return (scale_of(scale, group, first, N, GATE, UP, TURN, GROUPS, OUTPUTS),)
    elif GROUP == 64:
        return (
            scale_of(scale, group, first, N, GATE, UP, TURN, GROUPS, OUTPUTS),
            scale_of(scale, group + 1, first, N, GATE, UP, TURN, GROUPS, OUTPUTS),
        )
    else:
        return (
            scale_of(scale, group, first, N, GATE, UP, TURN, GROUPS, OUTPUTS),
            scale_of(scale, group + 1, first, N, GATE, UP, TURN, GROUPS, OUTPUTS),
            scale_of(scale, group + 2, first, N, GATE, UP, TURN, GROUPS, OUTPUTS),
            scale_of(scale, group + 3, first, N, GATE, UP, TURN, GROUPS, OUTPUTS),
        )


@triton.constexpr_function
def minus_zero(dtype):
    """Minus what a weight w of zero is; times the sum of x: its offset."""
    return -136.0 if dtype == tl.bfloat16 else -1.5


@triton.jit
def offset_of(value, OUTPUTS: tl.constexpr):
    """The offset of x by one more product: [parts, inputs, rows] to [parts, outputs, rows]."""
    PARTS: tl.constexpr = value.shape[0]
    ROWS: tl.constexpr = value.shape[2]
    minus = tl.full((PARTS, 16, value.shape[1]), minus_zero(value.dtype), value.dtype)
    offset = tl.dot(minus, value)
    offsets = tl.broadcast_to(offset[:, None, :, :], (PARTS, OUTPUTS // 16, 16, ROWS))
    return tl.reshape(offsets, (PARTS, OUTPUTS, ROWS))


@triton.jit
def with_group(
    total, sums, offsets, factor, zero, group, first, N: tl.constexpr, GATE: tl.constexpr,
    UP: tl.constexpr, TURN: tl.constexpr, GROUPS: tl.constexpr, WHOLE: tl.constexpr,
    dtype: tl.constexpr,
):  # fmt: skip
    """total [parts, outputs, rows] + what a group for each part adds: sums, offsets of x [parts,
    outputs or 1, rows or 1], factor its scales [parts, outputs]. UNIT times it, as `sums` are.
    """
    OUTPUTS: tl.constexpr = sums.shape[1]
    if not WHOLE:
        factor = tl.where((group < GROUPS)[:, None], factor, 0.0)
    if zero is not None:
        point = scale_of(zero, group, first, N, GATE, UP, TURN, GROUPS, OUTPUTS)
        if dtype == tl.bfloat16:  # BASE + UNIT zero in place of BASE + 8 UNIT
            offsets = offsets * (point / 136.0 + (128.0 / 136.0))[:, :, None]
        else:
            offsets = offsets * (point / 24.0 + (16.0 / 24.0))[:, :, None]
    return total + (sums + offsets) * factor[:, :, None]


@triton.jit
def result_of(
    total, GATE: tl.constexpr, UP: tl.constexpr, TURN: tl.constexpr, dtype: tl.constexpr
):  # fmt: skip
    """[rows, outputs] of the parts' total, the sums in their order."""
    OUTPUTS: tl.constexpr = total.shape[1]
    ROWS: tl.constexpr = total.shape[2]
    result = tl.sum(total, axis=0)
    if dtype == tl.float16:
        result *= 16.0  # 1 / UNIT
    result = tl.trans(result)
    if in_turn(GATE, UP, TURN):
        halves = tl.reshape(result, (ROWS, OUTPUTS // 16, 2, 8))
        result = tl.reshape(tl.permute(halves, (0, 1, 3, 2)), (ROWS, OUTPUTS))
    return result
