"""The best of each token's scores, as a list of rising positions.

A program takes a token. The key of the last score that is chosen is found bit by bit, by counting
how many are not less: 32 reads of the token's scores, which are in the L2 cache. Then a last one
writes what is above it, and of those equal to it the first ones, at places counted along the row.
"""

from __future__ import annotations

import triton
import triton.language as tl

from graphwright.backends.triton.kernels.index_scores import SCORED_KEYS
from graphwright.backends.triton.kernels.kernel import TritonKernel, define
from graphwright.backends.triton.kernels.sizes import quotient_up
from graphwright.backends.triton.kernels.top_k import ordered_bits

__all__ = ["choose_keys"]

_KEYS = 1024  # that a program looks at together


@triton.jit
def keys_of(row, first, end, KEYS: tl.constexpr):
    """int64 [KEYS] that order like the scores; 0 for what is hidden, else more."""
    place = first + tl.arange(0, KEYS)
    score = tl.load(row + place, mask=place < end, other=float("-inf"))
    key = ordered_bits(score).to(tl.int64) + 0x80000000
    return tl.where(score == float("-inf"), 0, key)


@triton.jit
def choose_keys_kernel(
    batch, scores, positions, chosen,
    COUNT: tl.constexpr, WIDTH: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    if token >= tl.load(batch):
        return
    end = tl.load(positions + token).to(tl.int32) + 1
    row, out = scores + token * WIDTH, chosen + token * COUNT
    last = tl.zeros((), tl.int64)  # 0: all that is visible is chosen
    better = tl.zeros((), tl.int32)
    if end > COUNT:
        for bit in range(32):
            trial = last | (tl.full((), 0x80000000, tl.int64) >> bit)
            count = tl.zeros((), tl.int32)
            for first in range(0, end, KEYS):
                count += tl.sum((keys_of(row, first, end, KEYS) >= trial).to(tl.int32), axis=0)
            last = tl.where(count >= COUNT, trial, last)
        for first in range(0, end, KEYS):
            better += tl.sum((keys_of(row, first, end, KEYS) > last).to(tl.int32), axis=0)
    taken = tl.zeros((), tl.int32)
    ties = tl.zeros((), tl.int32)
    for first in range(0, end, KEYS):
        key = keys_of(row, first, end, KEYS)
        tie = ((key == last) & (last > 0)).to(tl.int32)
        among = ties + tl.cumsum(tie, axis=0)
        keep = ((key > last) | ((tie > 0) & (among <= COUNT - better))).to(tl.int32)
        place = taken + tl.cumsum(keep, axis=0) - 1
        tl.store(out + place, first + tl.arange(0, KEYS), mask=keep > 0)
        taken += tl.sum(keep, axis=0)
        ties += tl.sum(tie, axis=0)
    for first in range(0, COUNT, KEYS):
        place = first + tl.arange(0, KEYS)
        tl.store(
            out + place, tl.full((KEYS,), -1, tl.int32), mask=(place >= taken) & (place < COUNT)
        )


def choose_keys(count: int, *, context: int) -> TritonKernel:
    """Pointers: batch, scores float32 [T, width] of index_scores with the same `context`, positions
    int64, chosen int32 [T, count].

    As gw.choose_keys: of equal scores the lower position, rising, and -1 behind them.
    """
    width = quotient_up(context, SCORED_KEYS) * SCORED_KEYS
    return define(
        "choose_keys",
        choose_keys_kernel,
        {"batch": "int32", "scores": "float32", "positions": "int64", "chosen": "int32"},
        {"COUNT": count, "WIDTH": width, "KEYS": _KEYS},
        grid=lambda size: (size["T"], 1, 1),
        num_warps=8,
    )
