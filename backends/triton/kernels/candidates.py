"""The k largest logits of each row, with their tokens: what a sampled token is drawn from.

Logits become the keys of `ranking_key`, all different and in the order of (logit, -token). A row
is cut into parts of 4,096, one a program, which keeps k keys of it; the last program of a row to
come keeps k of all that were kept, and puts them in order. Which k: the k-th largest value is
found bit by bit, by counting 32 times how many values are not below a trial; of those equal to it
the first are kept. Counting does not depend on k, where k rounds of a maximum would, and is a loop
of a few instructions, where networks of comparators (Triton's topk) take half a minute to compile.
The order of k keys is how many of the others are larger, k² comparisons at once.
"""

from __future__ import annotations

import triton
import triton.language as tl

from graphwright.backends.triton.kernels.epilogue import is_last
from graphwright.backends.triton.kernels.kernel import ROWS, TritonKernel, define
from graphwright.backends.triton.kernels.sizes import next_power_of_two, quotient_up
from graphwright.backends.triton.kernels.top_k import ranking_key

__all__ = ["candidates", "candidates_scratch"]

_PART = 4096


@triton.jit
def keep_largest(key, kept, K: tl.constexpr):
    """Stores the K largest of the keys [N >= K] at `kept`, in the order in which they came.

    Keys with the same upper half must come in falling order, as those of a row do.
    """
    value = (key >> 32).to(tl.int32).to(tl.uint32, bitcast=True) ^ 0x80000000
    least = tl.full((), 0, tl.uint32)
    bit = tl.full((), 0x80000000, tl.uint32)
    for _ in range(32):
        trial = least | bit
        least = tl.where(tl.sum((value >= trial).to(tl.int32), axis=0) >= K, trial, least)
        bit = bit >> 1
    larger = value > least
    equal = (value == least).to(tl.int32)
    room = K - tl.sum(larger.to(tl.int32), axis=0)
    chosen = larger | ((equal == 1) & (tl.cumsum(equal, axis=0) <= room))
    place = tl.cumsum(chosen.to(tl.int32), axis=0) - 1
    tl.store(kept + place, key, mask=chosen)


@triton.jit
def candidates_kernel(
    batch, logits, keys, counters, out,
    WIDTH: tl.constexpr, STRIDE: tl.constexpr, ROWS: tl.constexpr, K: tl.constexpr,
    PARTS: tl.constexpr, PADDED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    if row >= tl.load(batch + ROWS):
        return
    column = part * BLOCK + tl.arange(0, BLOCK)
    inside = column < WIDTH
    value = tl.load(logits + row * STRIDE + column, mask=inside, other=0.0).to(tl.float32)
    own = keys + row * PARTS * K
    # what lies outside is below -inf
    outside = -0x8000000000000000 + (0x7FFFFFFF - column).to(tl.int64)
    keep_largest(tl.where(inside, ranking_key(value, column), outside), own + part * K, K)
    if is_last(counters + row, PARTS):
        if PARTS > 1:
            each = tl.arange(0, PADDED)
            lowest = -0x8000000000000000
            key = tl.load(own + each, mask=each < PARTS * K, other=lowest, cache_modifier=".cg")
            tl.debug_barrier()  # all are read before some are written over
            keep_largest(key, own, K)
            tl.debug_barrier()
        place = tl.arange(0, K)
        key = tl.load(own + place, cache_modifier=".cg")
        rank = tl.sum((key[None, :] > key[:, None]).to(tl.int32), axis=1)
        ordered = (key >> 32).to(tl.int32)
        bits = tl.where(ordered < 0, ordered ^ 0x7FFFFFFF, ordered)
        tl.store(out + row * 2 * K + rank, 0x7FFFFFFF - (key & 0x7FFFFFFF).to(tl.int32))
        tl.store(out + (row * 2 + 1) * K + rank, bits)


def candidates(width: int, k: int, *, stride: int, dtype: str = "float32") -> TritonKernel:
    """Pointers: batch, logits (rows of `width`, one a sampled row), the scratch keys int64 and
    counters int32 (zero before and after) of `candidates_scratch`, out int32 [R, 2, k]: tokens in
    falling order of their logits, the lower one first of equals, and the bits of the logits as
    float32 (-0 as 0). A NaN counts as the largest. k is a power of two; what stands in places
    beyond `width` means nothing.
    """
    assert 0 < width < 2**31 - _PART and stride >= width and k == next_power_of_two(k) <= _PART
    parts, block = _split(width, k)
    padded = next_power_of_two(parts * k)
    return define(
        "candidates",
        candidates_kernel,
        {"batch": "int32", "logits": dtype, "keys": "int64", "counters": "int32", "out": "int32"},
        {
            "WIDTH": width, "STRIDE": stride, "ROWS": ROWS["R"], "K": k, "PARTS": parts,
            "PADDED": padded, "BLOCK": block,
        },
        grid=lambda size: (size["R"], parts, 1),
        num_warps=8 if padded <= 4096 else 16,  # fewer spill on sm_80
    )  # fmt: skip


def candidates_scratch(width: int, k: int, rows: int) -> tuple[int, int]:
    """Bytes of keys and counters for so many rows."""
    return 8 * rows * _split(width, k)[0] * k, 4 * rows


def _split(width: int, k: int) -> tuple[int, int]:
    """Parts of a row and their size."""
    block = min(_PART, max(k, next_power_of_two(width)))
    return quotient_up(width, block), block
