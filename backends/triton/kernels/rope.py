"""Rotary position embedding, alone or in one kernel with the append to the paged cache.

In a block of the cache, keys are [kv heads, block size, head dim], values [kv heads, block size,
value dim]; an int8 cache has float32 scales [kv heads, block size] for each of the two. A program
takes one token and some heads of q, of k or of v: it reads and writes each element once, and reads
its partner in the rotation from the L1 cache.
"""

from __future__ import annotations

import triton
import triton.language as tl

from graphwright.backends.triton.kernels.float8 import FLOAT8, narrowed
from graphwright.backends.triton.kernels.kernel import TritonKernel, define
from graphwright.backends.triton.kernels.sizes import next_power_of_two, quotient_up

__all__ = ["append_keys", "append_kv", "rope", "rope_append"]

_ELEMENTS = 1024  # that one program takes


@triton.jit
def rotated(
    x, norm, cos, sin, token, head, heads, X_STRIDE: tl.constexpr, ANGLE_STRIDE: tl.constexpr,
    DIM: tl.constexpr, ROTARY: tl.constexpr, INTERLEAVED: tl.constexpr, EPS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """float32 [heads of the tile, BLOCK] of token `token`, the first ROTARY channels rotated; with
    `norm` each head goes through an RMS norm before.
    """
    d = tl.arange(0, BLOCK)
    start = x + token * X_STRIDE + head[:, None] * DIM
    known = (head < heads)[:, None]
    value = tl.load(start + d[None, :], mask=known & (d < DIM)[None, :], other=0.0)
    value = value.to(tl.float32)
    if norm is not None:
        rms = tl.rsqrt(tl.sum(value * value, axis=1) / DIM + EPS)[:, None]
        value = value * rms * tl.load(norm + d, mask=d < DIM, other=0.0).to(tl.float32)[None, :]
    if ROTARY > 0:
        turns = d < ROTARY
        if INTERLEAVED:
            first = d % 2 == 0
            partner = tl.where(first, d + 1, d - 1)
        else:
            first = d < ROTARY // 2
            partner = tl.where(first, d + ROTARY // 2, d - ROTARY // 2)
        angle = token * ANGLE_STRIDE + d
        c = tl.load(cos + angle, mask=turns, other=1.0).to(tl.float32)
        s = tl.load(sin + angle, mask=turns, other=0.0).to(tl.float32)
        other = tl.load(start + partner[None, :], mask=known & turns[None, :], other=0.0)
        other = other.to(tl.float32)
        if norm is not None:
            factor = tl.load(norm + partner, mask=turns, other=0.0).to(tl.float32)
            other = other * rms * factor[None, :]
        s = tl.where(first, -s, s)
        value = value * c[None, :] + other * s[None, :]
    return value


@triton.jit
def put_in_cache(
    value, cache, scales, slot, head, heads, DIM: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    BLOCK_STRIDE: tl.constexpr, SCALE_STRIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Writes a tile of heads [_, BLOCK] to place `slot`; as int8 where there are scales."""
    d = tl.arange(0, BLOCK)
    block, place = (slot // BLOCK_SIZE).to(tl.int64), slot % BLOCK_SIZE
    row = head * BLOCK_SIZE + place
    inside = (head < heads)[:, None] & (d < DIM)[None, :]
    at = cache + block * BLOCK_STRIDE + row[:, None] * DIM + d[None, :]
    if scales is not None:
        scale = tl.div_rn(tl.max(tl.abs(value), axis=1), 127.0)
        divisor = tl.where(scale == 0.0, 1.0, scale)
        # adding and subtracting 1.5 * 2^23 rounds to an integer, ties to even
        value = (tl.div_rn(value, divisor[:, None]) + 12582912.0) - 12582912.0
        tl.store(scales + block * SCALE_STRIDE + row, scale, mask=head < heads)
    tl.store(at, narrowed(value, cache.dtype.element_ty), mask=inside)


@triton.jit
def rope_append_kernel(
    batch, q, k, v, q_norm, k_norm, cos, sin, slots, q_out, k_cache, v_cache, k_scales, v_scales,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, DIM: tl.constexpr, VALUE_DIM: tl.constexpr,
    ROTARY: tl.constexpr, INTERLEAVED: tl.constexpr, Q_STRIDE: tl.constexpr,
    K_STRIDE: tl.constexpr, V_STRIDE: tl.constexpr, ANGLE_STRIDE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, BLOCK_STRIDE: tl.constexpr, SCALE_STRIDE: tl.constexpr,
    QUERY_TILES: tl.constexpr, KV_TILES: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr,
    VALUE_BLOCK: tl.constexpr, Q_EPS: tl.constexpr, K_EPS: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    if token >= tl.load(batch):
        return
    tile = tl.program_id(1)
    if tile < QUERY_TILES:
        if q is not None:
            head = tile * TILE + tl.arange(0, TILE)
            value = rotated(
                q, q_norm, cos, sin, token, head, HEADS, Q_STRIDE, ANGLE_STRIDE, DIM, ROTARY,
                INTERLEAVED, Q_EPS, BLOCK,
            )  # fmt: skip
            d = tl.arange(0, BLOCK)
            at = q_out + (token * HEADS + head)[:, None] * DIM + d[None, :]
            inside = (head < HEADS)[:, None] & (d < DIM)[None, :]
            tl.store(at, value.to(q_out.dtype.element_ty), mask=inside)
    elif tile < QUERY_TILES + KV_TILES:
        if k is not None:
            head = (tile - QUERY_TILES) * TILE + tl.arange(0, TILE)
            key = rotated(
                k, k_norm, cos, sin, token, head, KV_HEADS, K_STRIDE, ANGLE_STRIDE, DIM, ROTARY,
                INTERLEAVED, K_EPS, BLOCK,
            )  # fmt: skip
            # what the graph's value would hold, had it been written out
            key = key.to(k.dtype.element_ty).to(tl.float32)
            put_in_cache(
                key, k_cache, k_scales, tl.load(slots + token), head, KV_HEADS, DIM, BLOCK_SIZE,
                BLOCK_STRIDE, SCALE_STRIDE, BLOCK,
            )  # fmt: skip
    else:
        if v is not None:
            head = (tile - QUERY_TILES - KV_TILES) * TILE + tl.arange(0, TILE)
            kept = rotated(
                v, None, cos, sin, token, head, KV_HEADS, V_STRIDE, 0, VALUE_DIM, 0, False, 0.0,
                VALUE_BLOCK,
            )  # fmt: skip
            put_in_cache(
                kept, v_cache, v_scales, tl.load(slots + token), head, KV_HEADS, VALUE_DIM,
                BLOCK_SIZE, BLOCK_STRIDE, SCALE_STRIDE, VALUE_BLOCK,
            )  # fmt: skip


def rope(
    heads: int, dim: int, rotary: int, *, x_stride: int, angle_stride: int, interleaved: bool,
    dtype: str = "float32", angles: str = "float32",
) -> TritonKernel:  # fmt: skip
    """gw.rope. Pointers: batch, q (rows [heads, dim]), cos, sin (rows of `rotary`), q_out [T, ...].

    cos and sin have the same row stride `angle_stride`; 0 repeats one row.
    """
    given: dict[str, str | None] = {"q": dtype, "cos": angles, "sin": angles, "q_out": dtype}
    return _declare(
        "rope", given, heads=heads, kv_heads=0, dim=dim, value_dim=dim, rotary=rotary,
        interleaved=interleaved, strides=(x_stride, 0, 0, angle_stride), block_size=16,
        block_stride=0,
    )  # fmt: skip


def append_kv(
    kv_heads: int, dim: int, value_dim: int, *, k_stride: int, v_stride: int, block_stride: int,
    block_size: int = 16, dtype: str = "float32", cache: str = "float32",
) -> TritonKernel:  # fmt: skip
    """Pointers: batch, k, v, slots (see token_slots), k_cache, v_cache, (k_scales, v_scales).

    k and v hold rows [kv_heads, dim] and [kv_heads, value_dim]; the caches (and, for int8, their
    scales) start at the state's part of block 0. Blocks lie `block_stride` elements of `cache`
    apart.
    """
    scales = "float32" if cache == "int8" else None
    given = {"k": dtype, "v": dtype, "slots": "int32", "k_cache": cache, "v_cache": cache}
    return _declare(
        "append_kv", {**given, "k_scales": scales, "v_scales": scales}, heads=0,
        kv_heads=kv_heads, dim=dim, value_dim=value_dim, rotary=0, interleaved=False,
        strides=(0, k_stride, v_stride, 0), block_size=block_size, block_stride=block_stride,
    )  # fmt: skip


def append_keys(
    kv_heads: int, dim: int, *, k_stride: int, block_stride: int, block_size: int = 16,
    dtype: str = "float32", cache: str = "float32",
) -> TritonKernel:  # fmt: skip
    """Pointers: batch, k, slots, k_cache: as append_kv, for index keys, which have no values and
    are floats."""
    return _declare(
        "append_keys", {"k": dtype, "slots": "int32", "k_cache": cache}, heads=0,
        kv_heads=kv_heads, dim=dim, value_dim=1, rotary=0, interleaved=False,
        strides=(0, k_stride, 0, 0), block_size=block_size, block_stride=block_stride,
    )  # fmt: skip


def rope_append(
    heads: int, kv_heads: int, dim: int, value_dim: int, rotary: int, *, q_stride: int,
    k_stride: int, v_stride: int, angle_stride: int, interleaved: bool, block_stride: int,
    q_norm: str | None = None, k_norm: str | None = None, eps: tuple[float, float] = (0.0, 0.0),
    block_size: int = 16, dtype: str = "float32", angles: str = "float32",
    cache: str = "float32",
) -> TritonKernel:  # fmt: skip
    """gw.rope of q and k, after RMS norms of their heads if they have such, and the append of k
    and v, in one kernel.

    Pointers: batch, q, k, v, (q_norm, k_norm [dim]), cos, sin, slots, q_out [T, heads, dim],
    k_cache, v_cache, (k_scales, v_scales); each as in `rope` and `append_kv`. q_norm and k_norm are
    the dtypes of the norms' weights, eps what they add to mean squares.
    """
    scales = "float32" if cache == "int8" else None
    given = {
        "q": dtype, "k": dtype, "v": dtype, "q_norm": q_norm, "k_norm": k_norm, "cos": angles,
        "sin": angles, "slots": "int32", "q_out": dtype, "k_cache": cache, "v_cache": cache,
        "k_scales": scales, "v_scales": scales,
    }  # fmt: skip
    return _declare(
        "rope_append", given, heads=heads, kv_heads=kv_heads, dim=dim, value_dim=value_dim,
        rotary=rotary, interleaved=interleaved,
        strides=(q_stride, k_stride, v_stride, angle_stride), block_size=block_size,
        block_stride=block_stride, eps=eps,
    )  # fmt: skip


def _declare(
    name: str, given: dict[str, str | None], *, heads: int, kv_heads: int, dim: int,
    value_dim: int, rotary: int, interleaved: bool, strides: tuple[int, int, int, int],
    block_size: int, block_stride: int, eps: tuple[float, float] = (0.0, 0.0),
) -> TritonKernel:  # fmt: skip
    assert rotary % 2 == 0 and 0 <= rotary <= dim
    item = 1 if given.get("k_cache") in ("int8", FLOAT8) else 4
    assert item == 4 or block_stride % 4 == 0, "scales are addressed in units of 4 bytes"
    block, value_block = next_power_of_two(dim), next_power_of_two(value_dim)
    widest = max(block, value_block)
    tile = max(1, min(next_power_of_two(max(heads, kv_heads)), _ELEMENTS // widest))
    query_tiles, kv_tiles = quotient_up(heads, tile), quotient_up(kv_heads, tile)
    q_stride, k_stride, v_stride, angle_stride = strides
    order = ("q", "k", "v", "q_norm", "k_norm", "cos", "sin", "slots", "q_out", "k_cache",
             "v_cache", "k_scales", "v_scales")  # fmt: skip
    return define(
        name,
        rope_append_kernel,
        {"batch": "int32", **{each: given.get(each) for each in order}},
        {
            "HEADS": heads, "KV_HEADS": kv_heads, "DIM": dim, "VALUE_DIM": value_dim,
            "ROTARY": rotary, "INTERLEAVED": interleaved, "Q_STRIDE": q_stride,
            "K_STRIDE": k_stride, "V_STRIDE": v_stride, "ANGLE_STRIDE": angle_stride,
            "BLOCK_SIZE": block_size, "BLOCK_STRIDE": block_stride,
            "SCALE_STRIDE": block_stride // 4, "QUERY_TILES": query_tiles,
            "KV_TILES": kv_tiles, "TILE": tile, "BLOCK": block, "VALUE_BLOCK": value_block,
            "Q_EPS": eps[0], "K_EPS": eps[1],
        },
        grid=lambda size: (size["T"], query_tiles + 2 * kv_tiles, 1),
        num_warps=4,
    )  # fmt: skip
