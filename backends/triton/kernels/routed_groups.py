"""The (token, slot) pairs of a step in the order of the experts that they are routed to.

A counting sort without atomics, so that it always gives the same order: the program of an expert
reads all pairs, counts those of lower experts, which is where its own begin, and writes its own in
their order. E programs read P ids each, from the L2 cache: 256 experts and 2,048 tokens of 8 slots
are 33 MB a pass, some ten microseconds beside products of milliseconds; a decode step is 64 bytes.
"""

from __future__ import annotations

import triton
import triton.language as tl

from graphwright.backends.triton.kernels.kernel import ROWS, RowCount, TritonKernel, define

__all__ = ["routed_groups"]

_PAIRS = 1024  # looked at together


@triton.jit
def routed_groups_kernel(
    batch, experts, order, starts,
    EXPERTS: tl.constexpr, SLOTS: tl.constexpr, STRIDE: tl.constexpr, ROWS: tl.constexpr,
    PAIRS: tl.constexpr,
):  # fmt: skip
    expert = tl.program_id(0)
    count = tl.load(batch + ROWS) * SLOTS
    lower = tl.zeros((PAIRS,), tl.int32)
    for first in range(0, count, PAIRS):
        pair = first + tl.arange(0, PAIRS)
        at = (pair // SLOTS).to(tl.int64) * STRIDE + pair % SLOTS
        chosen = tl.load(experts + at, mask=pair < count, other=EXPERTS)
        lower += (chosen < expert).to(tl.int32)
    place = tl.sum(lower, axis=0)
    tl.store(starts + expert, place)
    if expert == EXPERTS - 1:
        tl.store(starts + EXPERTS, count)
    for first in range(0, count, PAIRS):
        pair = first + tl.arange(0, PAIRS)
        at = (pair // SLOTS).to(tl.int64) * STRIDE + pair % SLOTS
        chosen = tl.load(experts + at, mask=pair < count, other=EXPERTS)
        mine = (chosen == expert).to(tl.int32)
        tl.store(order + place + tl.cumsum(mine, axis=0) - 1, pair, mask=mine > 0)
        place += tl.sum(mine, axis=0)


def routed_groups(
    experts: int, slots: int, *, experts_stride: int, rows: RowCount = "T"
) -> TritonKernel:
    """Pointers: batch, experts int64 (rows of `slots`, each id in 0..experts - 1), order int32
    [T * slots], starts int32 [experts + 1].

    order lists pairs (token * slots + slot) by expert; those of expert e are at starts[e] ..
    starts[e + 1].
    """
    assert experts_stride >= slots
    return define(
        "routed_groups",
        routed_groups_kernel,
        {"batch": "int32", "experts": "int64", "order": "int32", "starts": "int32"},
        {
            "EXPERTS": experts,
            "SLOTS": slots,
            "STRIDE": experts_stride,
            "ROWS": ROWS[rows],
            "PAIRS": _PAIRS,
        },
        grid=lambda size: (experts, 1, 1),
        num_warps=4,
    )
