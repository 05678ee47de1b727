"""One tile of keys and values in an online softmax: what prefill and decode share.

Source of the algorithm: Dao, FlashAttention-2, arXiv 2307.08691. Softmaxes are in base 2: scores
are multiplied by log2(e) and exponentiated by exp2, which is one instruction.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import triton
import triton.language as tl

from graphwright.backends.triton.kernels.activation import tanh
from graphwright.backends.triton.kernels.float8 import FLOAT8, widened
from graphwright.backends.triton.kernels.sizes import next_power_of_two, quotient_up
from graphwright.ir.masks import Mask

__all__ = ["AttentionShape", "attend_tile", "blocks_of", "dot", "load_rows", "lowest_key", "seen"]


@dataclass(frozen=True)
class AttentionShape:
    """The static parameters of attention over a paged cache.

    dtype is that of queries and results, cache that of keys and values: dtype itself, a float
    narrower than it, FLOAT8, or int8 with a float32 scale for each position and head. Blocks of the
    cache lie `block_stride` elements of it apart. The layout is that of kernels/rope.py. slopes and
    sinks, if any, are float32 [heads]. chosen: of how many keys that it has chosen a token sees no
    others; 0: of all. As in gw.cached_attention otherwise.
    """

    heads: int
    kv_heads: int
    dim: int
    value_dim: int
    q_stride: int
    block_stride: int
    scale: float
    mask: Mask = field(default_factory=Mask)
    softcap: float = 0.0
    slopes: bool = False
    sinks: bool = False
    block_size: int = 16
    dtype: str = "float32"
    cache: str = "float32"
    chosen: int = 0

    def __post_init__(self) -> None:
        assert self.heads % self.kv_heads == 0 and self.q_stride >= self.heads * self.dim
        assert self.cache != "int8" or self.block_stride % 4 == 0

    @property
    def bytes_each(self) -> bool:
        """Are keys and values bytes, which are converted in registers?"""
        return self.cache in ("int8", FLOAT8)

    @property
    def shared(self) -> int:
        """Query heads that read one key head."""
        return self.heads // self.kv_heads

    @property
    def packs(self) -> tuple[int, int]:
        """(query heads that a program takes, programs for all that read one key head): as many
        heads as four warps keep results of in 64 registers each.
        """
        packed = min(self.shared, 64, max(16, 8192 // self.blocks[2]))
        return packed, quotient_up(self.shared, packed)

    @property
    def blocks(self) -> tuple[int, int, int]:
        """Powers of two: the head dim in two parts (the second may be 0), and the value dim.

        Two parts waste less than one where the dim is 80, 96, 192 or 576.
        """
        whole = next_power_of_two(self.dim)
        value = max(16, next_power_of_two(self.value_dim))
        if whole == self.dim or self.dim < 16:
            return max(16, whole), 0, value
        rest = max(16, next_power_of_two(self.dim - whole // 2))
        return (whole // 2, rest, value) if rest < whole // 2 else (whole, 0, value)

    def constants(self) -> dict[str, Any]:
        """The constants that both kernels take."""
        first, second, value = self.blocks
        return {
            "KV_HEADS": self.kv_heads, "SHARED": self.shared, "DIM": self.dim,
            "VALUE_DIM": self.value_dim, "Q_STRIDE": self.q_stride,
            "BLOCK_STRIDE": self.block_stride, "BLOCK_SIZE": self.block_size,
            "SCALE": self.scale, "SOFTCAP": self.softcap, "WINDOW": self.mask.window or 0,
            "FIRST": self.mask.first, "CHUNK": self.mask.chunk or 0, "BLOCK_D": first,
            "REST_D": second, "BLOCK_V": value,
        }  # fmt: skip

    def pointers(self) -> dict[str, str | None]:
        """q, the caches, their scales, slopes and sinks: name to dtype, None for an absent one."""
        scales = "float32" if self.cache == "int8" else None
        return {
            "q": self.dtype, "k_cache": self.cache, "v_cache": self.cache, "k_scales": scales,
            "v_scales": scales, "slopes": "float32" if self.slopes else None,
            "sinks": "float32" if self.sinks else None,
        }  # fmt: skip


@triton.jit
def dot(a, b, accumulator):
    """accumulator + a · b; float32 operands are multiplied in full precision."""
    if a.dtype == tl.float32:
        return tl.dot(a, b, accumulator, input_precision="ieee")
    return tl.dot(a, b, accumulator)


@triton.jit
def load_rows(pointers, inside, FIRST: tl.constexpr, DIM: tl.constexpr, BLOCK: tl.constexpr):
    """[rows, BLOCK] elements FIRST.. of the rows at `pointers`; zeros beyond DIM and outside."""
    d = FIRST + tl.arange(0, BLOCK)
    mask = inside[:, None]
    if FIRST + BLOCK > DIM:
        mask = mask & (d < DIM)[None, :]
    return tl.load(pointers[:, None] + d[None, :], mask=mask, other=0)


@triton.jit
def lowest_key(position, WINDOW: tl.constexpr, CHUNK: tl.constexpr):
    """The lowest key position, but for the first ones, that a query at `position` may see."""
    lowest = position * 0
    if WINDOW > 0:
        lowest = tl.maximum(lowest, position - (WINDOW - 1))
    if CHUNK > 0:
        lowest = tl.maximum(lowest, position // CHUNK * CHUNK)
    return lowest


@triton.jit
def seen(key, lowest, end, FIRST: tl.constexpr):
    """Which keys are below `end`, and not below `lowest` or among the first FIRST."""
    return (key < end) & ((key >= lowest) | (key < FIRST))


@triton.jit
def blocks_of(table, key, inside, BLOCK_SIZE: tl.constexpr):
    """int64: the blocks of the cache that keys lie in."""
    return tl.load(table + key // BLOCK_SIZE, mask=inside, other=0).to(tl.int64)


@triton.jit
def attend_tile(
    q, q_rest, total, top, result, first, lowest, end, position, slope, table, kv_head,
    k_cache, v_cache, k_scales, v_scales, blocks, chosen,
    DIM: tl.constexpr, VALUE_DIM: tl.constexpr, BLOCK_STRIDE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, SCALE: tl.constexpr, SOFTCAP: tl.constexpr,
    WINDOW: tl.constexpr, FIRST: tl.constexpr, CHUNK: tl.constexpr, BLOCK_D: tl.constexpr,
    REST_D: tl.constexpr, BLOCK_V: tl.constexpr, KEYS: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Takes keys first .. first + KEYS into (total, top, result) of the queries q at `position`.

    q [M, BLOCK_D] and q_rest [M, REST_D]; total and top [M], result [M, BLOCK_V] float32. Keys at
    or above `end`, and below `lowest` but for the first FIRST, are not read. Without MASKED the
    caller knows that every query sees every key of the tile. blocks: of `blocks_of`, or None.
    chosen: None, or int32 positions that the one token of the queries has chosen: the keys are
    then those with the numbers first .. first + KEYS of the list, which ends at `end` or with -1.
    """
    key = first + tl.arange(0, KEYS)
    inside = key >= 0
    if chosen is not None:
        key = tl.load(chosen + key, mask=key < end, other=-1)
        inside = key >= 0
    elif MASKED:
        inside = seen(key, lowest, end, FIRST)
    if blocks is None:
        block = blocks_of(table, key, inside, BLOCK_SIZE)
    else:
        block = blocks
    row = kv_head * BLOCK_SIZE + key % BLOCK_SIZE
    k_rows = k_cache + block * BLOCK_STRIDE + row * DIM
    k = widened(load_rows(k_rows, inside, 0, DIM, BLOCK_D), q.dtype)
    score = dot(q, tl.trans(k), tl.zeros((q.shape[0], KEYS), tl.float32))
    if REST_D > 0:
        rest = widened(load_rows(k_rows, inside, BLOCK_D, DIM, REST_D), q.dtype)
        score = dot(q_rest, tl.trans(rest), score)
    if k_scales is not None:
        scales = k_scales + block * (BLOCK_STRIDE // 4) + row
        score = score * tl.load(scales, mask=inside, other=0.0)[None, :]
    if SOFTCAP > 0:
        score = tanh(score * (SCALE / SOFTCAP)) * SOFTCAP
        factor = 1.4426950408889634
    else:
        factor = SCALE * 1.4426950408889634
    if slope is not None:
        distance = (key[None, :] - position[:, None]).to(tl.float32)
        score = score * factor + slope[:, None] * distance * 1.4426950408889634
    else:
        score = score * factor
    if MASKED:
        visible = inside[None, :] & (key[None, :] <= position[:, None])
        if WINDOW > 0:
            near = position[:, None] - key[None, :] < WINDOW
            visible = visible & (near | (key < FIRST)[None, :])
        if CHUNK > 0:
            visible = visible & (position[:, None] // CHUNK == key[None, :] // CHUNK)
        score = tl.where(visible, score, float("-inf"))
    risen = tl.maximum(top, tl.max(score, axis=1))
    level = risen
    if MASKED:
        level = tl.where(risen == float("-inf"), 0.0, risen)  # a row that has seen no key yet
    weight = tl.exp2(score - level[:, None])
    fade = tl.exp2(top - level)
    total = total * fade + tl.sum(weight, axis=1)
    result = result * fade[:, None]
    v = load_rows(v_cache + block * BLOCK_STRIDE + row * VALUE_DIM, inside, 0, VALUE_DIM, BLOCK_V)
    if v_scales is not None:
        scales = v_scales + block * (BLOCK_STRIDE // 4) + row
        weight = weight * tl.load(scales, mask=inside, other=0.0)[None, :]
    result = dot(weight.to(q.dtype), widened(v, q.dtype), result)
    return total, risen, result
