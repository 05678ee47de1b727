"""What happens to the sums of a product before they are written: shared by all products.

A product by the merged weights of a gate and of what it gates computes both for the same places: a
tile takes rows of the gate's weight and of the other one in turn, so that the two sums of a place
lie side by side, and writes activation(gate) * up only. GATE and UP are where their rows begin;
equal ones say that there is no gate.

Programs that share the work of a tile hand over what they have: each stores its part and counts
itself; the last one to come adds the parts in their order, so that results do not vary, and puts
the counter back to zero for the next kernel.
"""

from __future__ import annotations

import triton
import triton.language as tl

from graphwright.backends.triton.kernels.activation import activate

__all__ = ["finish", "is_last", "weight_rows"]


@triton.jit
def weight_rows(
    first, N: tl.constexpr, GATE: tl.constexpr, UP: tl.constexpr, OUTPUTS: tl.constexpr
):
    """(rows of the weight that sums first .. first + OUTPUTS are made of, are there such)."""
    i = first + tl.arange(0, OUTPUTS)
    n = i
    if GATE != UP:
        n = i // 2 + tl.where(i % 2 == 0, GATE, UP)
    return n, i < N


@triton.jit
def finish(
    value, row, row_inside, first, bias, residual, out, N: tl.constexpr,
    RESIDUAL_STRIDE: tl.constexpr, ACTIVATION: tl.constexpr, GATE: tl.constexpr, UP: tl.constexpr,
):  # fmt: skip
    """Writes activation(value + bias) + residual, or with a gate activation(gate) * up, of sums
    first .. ; value [rows, sums], row int64."""
    OUTPUTS: tl.constexpr = value.shape[1]
    n, inside = weight_rows(first, N, GATE, UP, OUTPUTS)
    if bias is not None:
        value += tl.load(bias + n, mask=inside, other=0.0).to(tl.float32)[None, :]
    if GATE == UP:
        value = activate(value, ACTIVATION)
        mask = row_inside[:, None] & inside[None, :]
        if residual is not None:
            at = residual + (row * RESIDUAL_STRIDE)[:, None] + n[None, :]
            value += tl.load(at, mask=mask, other=0.0).to(tl.float32)
        at = out + (row * N)[:, None] + n[None, :]
        tl.store(at, value.to(out.dtype.element_ty), mask=mask)
    else:
        pairs = tl.reshape(value, (value.shape[0], OUTPUTS // 2, 2))
        gate, up = tl.split(pairs)
        place = first // 2 + tl.arange(0, OUTPUTS // 2)
        mask = row_inside[:, None] & (place < N // 2)[None, :]
        at = out + (row * (N // 2))[:, None] + place[None, :]
        tl.store(at, (activate(gate, ACTIVATION) * up).to(out.dtype.element_ty), mask=mask)


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
