"""Queries, keys and values from the sums of one product: rotated, and put where attention reads.

A product by the merged weights of queries, keys and values takes the two rows of its weight whose
channels turn together one after the other, so that their sums are neighbours in its tile. It turns
them, and writes queries to `out` and keys and values into the paged cache: a layer has no launch
for that. Norms of heads, and int8 caches, whose scales are of whole heads, need all channels of a
head in one program, which has a few: rope.py does those.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import triton
import triton.language as tl

from graphwright.backends.triton.kernels.float8 import narrowed

__all__ = [
    "TurnedHeads",
    "angles_of",
    "put_heads",
    "turn_inputs",
    "turn_results",
    "turned_row",
]


@dataclass(frozen=True)
class TurnedHeads:
    """Sums [heads, dim] of queries, [kv_heads, dim] of keys, [kv_heads, value_dim] of values.

    rotary: channels of a head that turn, the first ones: one of the first half with one of the
    second, or neighbours if interleaved. angle_stride: how far apart the rows of cos and sin are.
    block_stride: elements of the cache from block to block, which hold block_size places. angles,
    cache: element types.
    """

    heads: int
    kv_heads: int
    dim: int
    value_dim: int
    rotary: int
    interleaved: bool
    angle_stride: int
    block_size: int
    block_stride: int
    angles: str = "float32"
    cache: str = "float32"

    def __post_init__(self) -> None:
        assert self.rotary % 2 == self.dim % 2 == self.value_dim % 2 == 0
        assert self.rotary <= self.dim and self.cache != "int8"

    @property
    def sums(self) -> int:
        """How many there are."""
        return (self.heads + self.kv_heads) * self.dim + self.kv_heads * self.value_dim

    @property
    def constants(self) -> tuple[Any, ...]:
        """TURN of kernels, whose functions take it apart."""
        return (
            self.heads, self.kv_heads, self.dim, self.value_dim, self.rotary, self.interleaved,
            self.angle_stride, self.block_size, self.block_stride,
        )  # fmt: skip


def turn_inputs(turn: TurnedHeads | None) -> dict[str, str | None]:
    """Pointers of a product before its `partial`: cos and sin, rows of `rotary`, and slots."""
    angles = turn.angles if turn else None
    return {"cos": angles, "sin": angles, "slots": "int32" if turn else None}


def turn_results(turn: TurnedHeads | None) -> dict[str, str | None]:
    """Pointers of a product behind its `out`, which takes the queries: the state's part of block 0
    of the caches.
    """
    cache = turn.cache if turn else None
    return {"k_cache": cache, "v_cache": cache}


# Places in TURN
HEADS, KV_HEADS, DIM, VALUE_DIM = (tl.constexpr(i) for i in range(4))
ROTARY, INTERLEAVED, ANGLE_STRIDE, BLOCK_SIZE, BLOCK_STRIDE = (tl.constexpr(i) for i in range(4, 9))


@triton.jit
def remainder(i, size: tl.constexpr):
    """i % size of what is not negative, which takes half the instructions if it is known."""
    return (i.to(tl.uint32) % size).to(tl.int32)


@triton.jit
def turned_row(i, TURN: tl.constexpr):
    """The row of the weight that sum i is made of, as partners are neighbours."""
    n = i
    if not TURN[INTERLEAVED]:
        d = remainder(i, TURN[DIM])
        turns = (d < TURN[ROTARY]) & (i < (TURN[HEADS] + TURN[KV_HEADS]) * TURN[DIM])
        n = tl.where(turns, i - d + (d >> 1) + (d & 1) * (TURN[ROTARY] // 2), i)
    return n


@triton.jit
def angles_of(cos, sin, slots, row, row_inside, i, TURN: tl.constexpr):
    """(cos and sin for sums i, cos and sin for sums i + 1, the place of each row in the cache)."""
    KEYS: tl.constexpr = (TURN[HEADS] + TURN[KV_HEADS]) * TURN[DIM]
    turns = (remainder(i, TURN[DIM]) < TURN[ROTARY]) & (i < KEYS)
    mask = row_inside[:, None] & turns[None, :]
    d = remainder(turned_row(i, TURN), TURN[DIM])
    next_d = remainder(turned_row(i + 1, TURN), TURN[DIM])
    at = (row * TURN[ANGLE_STRIDE])[:, None] + d[None, :]
    next_at = (row * TURN[ANGLE_STRIDE])[:, None] + next_d[None, :]
    first_cos = tl.load(cos + at, mask=mask, other=1.0).to(tl.float32)
    first_sin = tl.load(sin + at, mask=mask, other=0.0).to(tl.float32)
    next_cos = tl.load(cos + next_at, mask=mask, other=1.0).to(tl.float32)
    next_sin = tl.load(sin + next_at, mask=mask, other=0.0).to(tl.float32)
    slot = tl.load(slots + row, mask=row_inside, other=0)
    return first_cos, first_sin, next_cos, next_sin, slot


@triton.jit
def put_heads(
    one, other, angles, row, row_inside, first, out, k_cache, v_cache, N: tl.constexpr,
    TURN: tl.constexpr,
):  # fmt: skip
    """Turns sums first, first + 2, … (one [rows, pairs]) with those behind them (other), and writes
    them to the queries, or to the cache.
    """
    QUERIES: tl.constexpr = TURN[HEADS] * TURN[DIM]
    KEYS: tl.constexpr = QUERIES + TURN[KV_HEADS] * TURN[DIM]
    PAIRS: tl.constexpr = one.shape[1]
    one_cos, one_sin, other_cos, other_sin, slot = angles
    turned = one * one_cos - other * one_sin
    other = other * other_cos + one * other_sin
    i = first + 2 * tl.arange(0, PAIRS)
    n, next_n = turned_row(i, TURN), turned_row(i + 1, TURN)
    end = first + 2 * PAIRS
    place = remainder(slot, TURN[BLOCK_SIZE])
    start = (slot.to(tl.uint32) // TURN[BLOCK_SIZE]).to(tl.int64) * TURN[BLOCK_STRIDE]
    if first < QUERIES:
        mask = row_inside[:, None] & (n < QUERIES)[None, :]
        at = out + (row * QUERIES)[:, None]
        tl.store(at + n[None, :], turned.to(out.dtype.element_ty), mask=mask)
        tl.store(at + next_n[None, :], other.to(out.dtype.element_ty), mask=mask)
    if (first < KEYS) & (end > QUERIES):
        mask = row_inside[:, None] & ((n >= QUERIES) & (n < KEYS))[None, :]
        kind = k_cache.dtype.element_ty
        at = k_cache + start[:, None]
        key, next_key = narrowed(turned, kind), narrowed(other, kind)
        tl.store(at + in_block(n - QUERIES, place, TURN[DIM], TURN), key, mask=mask)
        tl.store(at + in_block(next_n - QUERIES, place, TURN[DIM], TURN), next_key, mask=mask)
    if end > KEYS:
        mask = row_inside[:, None] & ((n >= KEYS) & (n < N))[None, :]
        kind = v_cache.dtype.element_ty
        at = v_cache + start[:, None]
        value, next_value = narrowed(turned, kind), narrowed(other, kind)
        tl.store(at + in_block(n - KEYS, place, TURN[VALUE_DIM], TURN), value, mask=mask)
        tl.store(at + in_block(next_n - KEYS, place, TURN[VALUE_DIM], TURN), next_value, mask=mask)


@triton.jit
def in_block(n, place, SIZE: tl.constexpr, TURN: tl.constexpr):
    """Where channels n of all heads of that size are in a block, for each row's place in it."""
    head = (n.to(tl.uint32) // SIZE).to(tl.int32)
    return (n + head * ((TURN[BLOCK_SIZE] - 1) * SIZE))[None, :] + (place * SIZE)[:, None]
