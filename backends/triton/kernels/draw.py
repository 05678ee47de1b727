"""A token drawn from each row of logits: temperature, top-k, top-p and min-p, as the host does it.

Weights exp((logit - best) / temperature) are whole numbers, the best one's 2^44, so that their sums
do not depend on who adds them up. Tokens are taken in falling order of their logits where some are
cut off, in the order of their ids where none are, and the one is drawn at which the sum of weights
exceeds a share of all: the share is the request's random number, which the host sends.

Where none are cut off, two steps find it: each program adds up the weights of its part of the row,
and the last one to come takes the part where the sum exceeds the share, and the token in it.

A cut at n tokens or at a share of the mass, and the draw itself, are the same question: which is
the largest logit at and above which there is so much? It is answered digit by digit of the logit's
bits. Each part hands over its KEPT largest logits, and the last program asks among those. That is
the answer if it lies above the least that any part handed over. Else the last program asks the
whole row again: flat distributions cost it some passes over all logits.
"""

from __future__ import annotations

import triton
import triton.language as tl

from graphwright.backends.triton.kernels.epilogue import is_last
from graphwright.backends.triton.kernels.kernel import ROWS, TritonKernel, define
from graphwright.backends.triton.kernels.sizes import next_power_of_two, quotient_up
from graphwright.backends.triton.kernels.top_k import ordered_bits

__all__ = ["KEPT", "draw", "draw_scratch"]

KEPT = 64  # logits of a part
_PART, _MOST_PARTS = 2048, 128
_PIECE = 2048  # of a row, of which a program has four on their way


@triton.jit
def rank_of(value):
    """uint32 in the order of float32 `value`, -0 like 0; 0 is below all."""
    return ordered_bits(value).to(tl.uint32, bitcast=True) ^ 0x80000000


@triton.jit
def rank_in(key):
    """Of int64 keys, in the upper half of which it lies, with its first bit turned."""
    return (key >> 32).to(tl.int32).to(tl.uint32, bitcast=True) ^ 0x80000000


@triton.jit
def weight_of(rank, best, scale):
    """int64 weights, 2^44 for the logit `best`. scale: log2(e) / temperature."""
    ordered = (rank ^ 0x80000000).to(tl.int32, bitcast=True)
    bits = tl.where(ordered < 0, ordered ^ 0x7FFFFFFF, ordered)
    value = tl.where(rank == 0, float("-inf"), bits.to(tl.float32, bitcast=True))
    return (tl.exp2((value - best) * scale) * 17592186044416.0).to(tl.int64)


@triton.jit
def share_of(total, share):
    """The part `share` (64 bits behind the point) of int64 `total`, rounded down."""
    return tl.umulhi(total.to(tl.uint64), share.to(tl.uint64, bitcast=True)).to(tl.int64)


@triton.jit
def keep_largest(key, kept, K: tl.constexpr):
    """Stores the K largest of the keys [N >= K] at `kept`, in the order in which they came; returns
    the rank of the least of them.

    Keys with the same upper half must come in falling order, as those of a row do.
    """
    value = rank_in(key)
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
    return least


@triton.jit
def piece_of(row, first, WIDTH: tl.constexpr, PIECE: tl.constexpr):
    """Ranks of the logits from `first`, 0 where there are none."""
    column = first + tl.arange(0, PIECE)
    value = tl.load(row + column, mask=column < WIDTH, other=0.0).to(tl.float32)
    return tl.where(column < WIDTH, rank_of(value), 0)


@triton.jit
def amounts_at(
    rank, row, best, scale, first, second, third, COUNTED: tl.constexpr, WHOLE: tl.constexpr,
    WIDTH: tl.constexpr, PIECE: tl.constexpr,
):  # fmt: skip
    """How much there is at and above three ranks: weight, or tokens if COUNTED; of `rank`, or of
    the WHOLE row of logits.
    """
    if WHOLE:
        a = tl.zeros((PIECE,), tl.int64)
        b = tl.zeros((PIECE,), tl.int64)
        c = tl.zeros((PIECE,), tl.int64)
        for begin in range(0, WIDTH, 4 * PIECE):
            for i in tl.static_range(4):
                own = piece_of(row, begin + i * PIECE, WIDTH, PIECE)
                amount = tl.full((PIECE,), 1, tl.int64)
                if not COUNTED:
                    amount = weight_of(own, best, scale)
                a += tl.where(own >= first, amount, 0)
                b += tl.where(own >= second, amount, 0)
                c += tl.where(own >= third, amount, 0)
    else:
        amount = tl.full(rank.shape, 1, tl.int64)
        if not COUNTED:
            amount = weight_of(rank, best, scale)
        a = tl.where(rank >= first, amount, 0)
        b = tl.where(rank >= second, amount, 0)
        c = tl.where(rank >= third, amount, 0)
    return tl.sum(a, axis=0), tl.sum(b, axis=0), tl.sum(c, axis=0)


@triton.jit
def rank_with(
    rank, row, best, scale, need, COUNTED: tl.constexpr, WHOLE: tl.constexpr,
    WIDTH: tl.constexpr, PIECE: tl.constexpr,
):  # fmt: skip
    """The largest rank at and above which there is at least `need`; 0 when there is none."""
    found = tl.full((), 0, tl.uint32)
    digit = tl.full((), 0x40000000, tl.uint32)
    for _ in range(16):
        a, b, c = amounts_at(
            rank, row, best, scale, found + digit, found + 2 * digit, found + 3 * digit, COUNTED,
            WHOLE, WIDTH, PIECE,
        )  # fmt: skip
        steps = (a >= need).to(tl.uint32) + (b >= need).to(tl.uint32) + (c >= need).to(tl.uint32)
        found += steps * digit
        digit = digit >> 2
    return found


@triton.jit
def find_cut(
    rank, row, best, scale, total, number, top_k, top_p, lead, WHOLE: tl.constexpr,
    WIDTH: tl.constexpr, PIECE: tl.constexpr,
):  # fmt: skip
    """(rank of the token that is drawn, how many of that rank come before it, the lowest rank that
    anything was asked about).
    """
    mass = total
    lowest = tl.full((), 0xFFFFFFFF, tl.uint32)
    if top_k > 0:
        need = top_k.to(tl.int64)
        least = rank_with(rank, row, best, scale, need, True, WHOLE, WIDTH, PIECE)
        count, _, _ = amounts_at(
            rank, row, best, scale, least + 1, least, least, True, WHOLE, WIDTH, PIECE
        )
        mass, _, _ = amounts_at(
            rank, row, best, scale, least + 1, least, least, False, WHOLE, WIDTH, PIECE
        )
        mass += (need - count) * weight_of(least, best, scale)
        lowest = tl.minimum(lowest, least)
    if top_p != 0:
        need = share_of(mass, top_p) + (mass * top_p != 0).to(tl.int64)  # rounded up
        least = rank_with(rank, row, best, scale, need, False, WHOLE, WIDTH, PIECE)
        above, _, _ = amounts_at(
            rank, row, best, scale, least + 1, least, least, False, WHOLE, WIDTH, PIECE
        )
        each = tl.maximum(weight_of(least, best, scale), 1)
        mass = above + (need - above + each - 1) // each * each
        lowest = tl.minimum(lowest, least)
    if lead > float("-inf"):
        least = rank_of(best + lead)
        some, _, _ = amounts_at(
            rank, row, best, scale, least, least, least, False, WHOLE, WIDTH, PIECE
        )
        mass = tl.minimum(mass, some)
        lowest = tl.minimum(lowest, least)
    target = share_of(mass, number)
    drawn = rank_with(rank, row, best, scale, target + 1, False, WHOLE, WIDTH, PIECE)
    above, _, _ = amounts_at(
        rank, row, best, scale, drawn + 1, drawn, drawn, False, WHOLE, WIDTH, PIECE
    )
    before = (target - above) // tl.maximum(weight_of(drawn, best, scale), 1)
    return drawn, before, tl.minimum(lowest, drawn)


@triton.jit
def drawn_of_some(
    sums, kept, row, best, scale, number, top_k, top_p, lead, WIDTH: tl.constexpr,
    PARTS: tl.constexpr, PADDED: tl.constexpr, KEYS: tl.constexpr, PADDED_KEYS: tl.constexpr,
    PIECE: tl.constexpr,
):  # fmt: skip
    """The token that is drawn in falling order of logits, some of them being cut off."""
    each = tl.arange(0, PADDED)
    inside = each < PARTS
    total = tl.sum(tl.load(sums + 2 * each, mask=inside, other=0, cache_modifier=".cg"), axis=0)
    left = tl.load(sums + 2 * each + 1, mask=inside, other=0, cache_modifier=".cg")
    place = tl.arange(0, PADDED_KEYS)
    none = -0x8000000000000000
    key = tl.load(kept + place, mask=place < KEYS, other=none, cache_modifier=".cg")
    rank = rank_in(key)
    drawn, before, lowest = find_cut(
        rank, row, best, scale, total, number, top_k, top_p, lead, False, WIDTH, PIECE
    )
    index = tl.full((), 0, tl.int32)
    if lowest.to(tl.int64) > tl.max(left, axis=0):
        key = tl.load(kept + place, mask=place < KEYS, other=none, cache_modifier=".cg")
        equal = (rank_in(key) == drawn).to(tl.int32)
        here = (equal == 1) & (tl.cumsum(equal, axis=0) - 1 == before)
        index = tl.sum(tl.where(here, 0x7FFFFFFF - key.to(tl.int32), 0), axis=0)
    else:
        drawn, before, lowest = find_cut(
            rank, row, best, scale, total, number, top_k, top_p, lead, True, WIDTH, PIECE
        )
        for begin in range(0, WIDTH, PIECE):
            equal = (piece_of(row, begin, WIDTH, PIECE) == drawn).to(tl.int32)
            here = (equal == 1) & (tl.cumsum(equal, axis=0) - 1 == before)
            index += tl.sum(tl.where(here, begin + tl.arange(0, PIECE), 0), axis=0)
            before -= tl.sum(equal, axis=0)
    return index


@triton.jit
def drawn_of_all(
    sums, row, best, scale, number, WIDTH: tl.constexpr, PARTS: tl.constexpr, PADDED: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """The token that is drawn in the order of ids, none of them being cut off."""
    each = tl.arange(0, PADDED)
    mass = tl.load(sums + 2 * each, mask=each < PARTS, other=0, cache_modifier=".cg")
    target = share_of(tl.sum(mass, axis=0), number)
    part = tl.sum((tl.cumsum(mass, axis=0) <= target).to(tl.int32), axis=0)
    target -= tl.sum(tl.where(each < part, mass, 0), axis=0)
    weight = weight_of(piece_of(row, part * BLOCK, WIDTH, BLOCK), best, scale)
    return part * BLOCK + tl.sum((tl.cumsum(weight, axis=0) <= target).to(tl.int32), axis=0)


@triton.jit
def draw_kernel(
    batch, draws, logits, parts, keys, counters, largest, chosen,
    WIDTH: tl.constexpr, STRIDE: tl.constexpr, ROWS: tl.constexpr, K: tl.constexpr,
    PARTS: tl.constexpr, PADDED: tl.constexpr, PADDED_KEYS: tl.constexpr, BLOCK: tl.constexpr,
    PIECE: tl.constexpr,
):  # fmt: skip
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    if row >= tl.load(batch + ROWS):
        return
    words = tl.load(draws + row * 4 + 1)
    top_k = words.to(tl.int32)
    scale = (words >> 32).to(tl.int32).to(tl.float32, bitcast=True)
    token = tl.load(chosen + row)
    if (top_k == 1) | (token < 0):  # the largest logit's, or there was a NaN
        return
    number = tl.load(draws + row * 4)
    top_p = tl.load(draws + row * 4 + 2)
    lead = tl.load(draws + row * 4 + 3).to(tl.int32).to(tl.float32, bitcast=True)
    own = logits + row * STRIDE
    best = tl.load(own + token).to(tl.float32)
    if tl.abs(best) == float("inf"):
        if part == 0:
            tl.store(largest + row, -2)
            tl.store(chosen + row, -2)
        return
    cut = (top_k > 0) | (top_p != 0) | (lead > float("-inf"))
    kept = keys + row * PARTS * K
    sums = parts + row * PARTS * 2
    column = part * BLOCK + tl.arange(0, BLOCK)
    rank = piece_of(own, part * BLOCK, WIDTH, BLOCK)
    tl.store(sums + 2 * part, tl.sum(weight_of(rank, best, scale), axis=0))
    if cut:
        key = (rank ^ 0x80000000).to(tl.int32, bitcast=True).to(tl.int64) << 32
        least = keep_largest(key | (0x7FFFFFFF - column).to(tl.int64), kept + part * K, K)
        least = tl.where(tl.sum((rank > 0).to(tl.int32), axis=0) > K, least, 0)
        tl.store(sums + 2 * part + 1, least.to(tl.int64))
    if is_last(counters + row, PARTS):
        if cut:
            index = drawn_of_some(
                sums, kept, own, best, scale, number, top_k, top_p, lead, WIDTH, PARTS, PADDED,
                PARTS * K, PADDED_KEYS, PIECE,
            )  # fmt: skip
        else:
            index = drawn_of_all(sums, own, best, scale, number, WIDTH, PARTS, PADDED, BLOCK)
        tl.store(largest + row, index)
        tl.store(chosen + row, index)


def draw(width: int, *, stride: int, dtype: str = "float32") -> TritonKernel:
    """Pointers: batch, draws int64 [R, 4] (runtime/draw.py says what its words are), logits (rows
    of `width`, one a sampled row), the scratch parts and keys int64 and counters int32 (zero before
    and after) of `draw_scratch`, and twice the tokens int32 [R], as `argmax` left them for these
    rows: those that are to be drawn are written over; with -2, where the largest is infinite.
    """
    assert 0 < width < 2**31 - 4 * _PIECE and stride >= width
    parts, block = _split(width)
    return define(
        "draw",
        draw_kernel,
        {
            "batch": "int32", "draws": "int64", "logits": dtype, "parts": "int64", "keys": "int64",
            "counters": "int32", "largest": "int32", "chosen": "int32",
        },
        {
            "WIDTH": width, "STRIDE": stride, "ROWS": ROWS["R"], "K": KEPT, "PARTS": parts,
            "PADDED": next_power_of_two(parts), "PADDED_KEYS": next_power_of_two(parts * KEPT),
            "BLOCK": block, "PIECE": _PIECE,
        },
        grid=lambda size: (size["R"], parts, 1),
        num_warps=16,
    )  # fmt: skip


def draw_scratch(width: int, rows: int) -> tuple[int, int, int]:
    """Bytes of parts, keys and counters for so many rows."""
    parts = rows * _split(width)[0]
    return 16 * parts, 8 * parts * KEPT, 4 * rows


def _split(width: int) -> tuple[int, int]:
    """Parts of a row and their size."""
    block = max(_PART, next_power_of_two(quotient_up(width, _MOST_PARTS)))
    block = min(block, max(KEPT, next_power_of_two(width)))
    return quotient_up(width, block), block
