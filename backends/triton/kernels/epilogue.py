"""What happens to the sums of a product before they are written: shared by all products.

A product whose sums belong together in pairs takes the two rows of its weight in turn, so that they
lie side by side in its tile: those of a gate and of what it gates, of which it writes
activation(gate) * up only (GATE and UP are where their rows begin; equal ones say that there is no
gate), or channels of heads that turn together (turned_heads.py; TURN is None where none do).

Programs that share the work of a tile hand over what they have: each stores its part and counts
itself; the last one to come adds the parts in their order, so that results do not vary, and puts
the counter back to zero for the next kernel.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from graphwright.backends.triton.kernels.activation import activate
from graphwright.backends.triton.kernels.turned_heads import (
    TurnedHeads,
    angles_of,
    put_heads,
    turned_row,
)
from graphwright.ir.activations import ACTIVATIONS

__all__ = [
    "early_inputs",
    "finish",
    "finish_constants",
    "finish_in_pieces",
    "is_last",
    "weight_row",
    "weight_rows",
]


def finish_constants(
    n: int, activation: str, gate: tuple[int, int] | None, turn: TurnedHeads | None, *,
    residual: bool,
) -> dict[str, Any]:  # fmt: skip
    """What `finish` and `weight_rows` are told of a product's n sums."""
    assert activation in ACTIVATIONS
    assert gate is None or (not residual and turn is None and sorted(gate) == [0, n // 2])
    assert turn is None or (turn.sums == n and activation == "none" and not residual)
    first, second = gate or (0, 0)
    return {
        "N": n,
        "ACTIVATION": activation,
        "GATE": first,
        "UP": second,
        "TURN": None if turn is None else turn.constants,
    }


@triton.jit
def weight_row(i, GATE: tl.constexpr, UP: tl.constexpr, TURN: tl.constexpr):
    """The row of the weight that sum i is made of."""
    n = i
    if TURN is not None:
        n = turned_row(i, TURN)
    elif GATE != UP:
        n = i // 2 + tl.where(i % 2 == 0, GATE, UP)
    return n


@triton.jit
def weight_rows(
    first, N: tl.constexpr, GATE: tl.constexpr, UP: tl.constexpr, TURN: tl.constexpr,
    OUTPUTS: tl.constexpr,
):  # fmt: skip
    """(rows of the weight that sums first .. first + OUTPUTS are made of, are there such)."""
    i = first + tl.arange(0, OUTPUTS)
    return weight_row(i, GATE, UP, TURN), i < N


@triton.jit
def bias_of(bias, n, inside):
    """float32, of sums that are made of rows n of the weight."""
    return tl.load(bias + n, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def residual_of(residual, row, row_inside, n, inside, RESIDUAL_STRIDE: tl.constexpr):
    """float32 [rows, sums]."""
    at = residual + (row * RESIDUAL_STRIDE)[:, None] + n[None, :]
    mask = row_inside[:, None] & inside[None, :]
    return tl.load(at, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def early_inputs(
    row, row_inside, first, bias, residual, cos, sin, slots, N: tl.constexpr,
    RESIDUAL_STRIDE: tl.constexpr, GATE: tl.constexpr, UP: tl.constexpr, TURN: tl.constexpr,
    OUTPUTS: tl.constexpr, BEFORE: tl.constexpr,
):  # fmt: skip
    """(bias, residual, angles of pairs that turn) for `finish`, 0 for what there is not. BEFORE: a
    product loads them before its loop, so that nobody waits for them at its end: where they are
    few, as they stay in registers. Else `finish` loads them.
    """
    n, inside = weight_rows(first, N, GATE, UP, TURN, OUTPUTS)
    added, rest, angles = 0.0, 0.0, 0
    if BEFORE:
        if bias is not None:
            added = bias_of(bias, n, inside)
        if residual is not None:
            rest = residual_of(residual, row, row_inside, n, inside, RESIDUAL_STRIDE)
        if TURN is not None:
            i = first + 2 * tl.arange(0, OUTPUTS // 2)
            angles = angles_of(cos, sin, slots, row, row_inside, i, TURN)
    return added, rest, angles


@triton.jit
def finish(
    value, early, row, row_inside, first, bias, residual, cos, sin, slots, out, k_cache, v_cache,
    N: tl.constexpr, RESIDUAL_STRIDE: tl.constexpr, ACTIVATION: tl.constexpr, GATE: tl.constexpr,
    UP: tl.constexpr, TURN: tl.constexpr, BEFORE: tl.constexpr,
):  # fmt: skip
    """Writes activation(value + bias) + residual, or with a gate activation(gate) * up, or heads
    that turn, of sums first .. ; value [rows, sums], row int64, early of `early_inputs`."""
    OUTPUTS: tl.constexpr = value.shape[1]
    added, rest, angles = early
    n, inside = weight_rows(first, N, GATE, UP, TURN, OUTPUTS)
    if bias is not None:
        if not BEFORE:
            added = bias_of(bias, n, inside)
        value += added[None, :]
    if TURN is None and GATE == UP:
        value = activate(value, ACTIVATION)
        if residual is not None:
            if not BEFORE:
                rest = residual_of(residual, row, row_inside, n, inside, RESIDUAL_STRIDE)
            value += rest
        at = out + (row * N)[:, None] + n[None, :]
        mask = row_inside[:, None] & inside[None, :]
        tl.store(at, value.to(out.dtype.element_ty), mask=mask)
    else:
        one, other = tl.split(tl.reshape(value, (value.shape[0], OUTPUTS // 2, 2)))
        pair = tl.arange(0, OUTPUTS // 2)
        if TURN is None:
            place = first // 2 + pair
            mask = row_inside[:, None] & (place < N // 2)[None, :]
            at = out + (row * (N // 2))[:, None] + place[None, :]
            tl.store(at, (activate(one, ACTIVATION) * other).to(out.dtype.element_ty), mask=mask)
        else:
            if not BEFORE:
                angles = angles_of(cos, sin, slots, row, row_inside, first + 2 * pair, TURN)
            put_heads(one, other, angles, row, row_inside, first, out, k_cache, v_cache, N, TURN)


@triton.jit
def halves(x):
    """The first half of the rows, and the second."""
    if len(x.shape) == 1:
        both = tl.permute(tl.reshape(x, (2, x.shape[0] // 2)), (1, 0))
    else:
        both = tl.permute(tl.reshape(x, (2, x.shape[0] // 2, x.shape[1])), (1, 2, 0))
    return tl.split(both)


@triton.jit
def finish_in_pieces(
    value, row, row_inside, first, bias, residual, cos, sin, slots, out, k_cache, v_cache,
    N: tl.constexpr, RESIDUAL_STRIDE: tl.constexpr, ACTIVATION: tl.constexpr, GATE: tl.constexpr,
    UP: tl.constexpr, TURN: tl.constexpr,
):  # fmt: skip
    """`finish` with nothing early. Large tiles of heads turn one part after the other: all their
    angles at once would take more registers than the product does.
    """
    if TURN is not None and value.shape[0] * value.shape[1] > 2048:
        one, other = halves(value)
        row_one, row_other = halves(row)
        inside_one, inside_other = halves(row_inside)
        finish_in_pieces(
            one, row_one, inside_one, first, bias, residual, cos, sin, slots, out, k_cache, v_cache,
            N, RESIDUAL_STRIDE, ACTIVATION, GATE, UP, TURN,
        )  # fmt: skip
        finish_in_pieces(
            other, row_other, inside_other, first, bias, residual, cos, sin, slots, out, k_cache,
            v_cache, N, RESIDUAL_STRIDE, ACTIVATION, GATE, UP, TURN,
        )  # fmt: skip
    else:
        finish(
            value, (0.0, 0.0, 0), row, row_inside, first, bias, residual, cos, sin, slots, out,
            k_cache, v_cache, N, RESIDUAL_STRIDE, ACTIVATION, GATE, UP, TURN, False,
        )  # fmt: skip


@triton.jit
def is_last(counter, count):
    """Is this program the last of `count` to come here? It then sees what the others stored before
    (past the L1 cache: load with cache_modifier=".cg"), and the counter is zero again.
    """
    tl.debug_barrier()  # the stores of all threads come before the one that counts
    last = tl.atomic_add(counter, 1, sem="acq_rel", scope="gpu") == count - 1
    if last:
        tl.store(counter, 0)
    return last
