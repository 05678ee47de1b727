"""Attention of few tokens with long contexts: the keys of each token split over programs.

A program takes one token, the query heads that share a key head, and one of SPLITS parts of the
keys that the token sees. Where the parts begin depends on the token's position alone, so that a
token's result does not depend on what else is in the batch; parts are combined in their order by a
second kernel. Decode reads each key and value once and is bound by those bytes: tensor cores work
on 16 rows even for one query head, 16 operations a byte, a tenth of what they could do.

Source: Dao et al., Flash-Decoding for long-context inference, 2023.
"""

from __future__ import annotations

import triton
import triton.language as tl

from graphwright.backends.triton.kernels.attention_tile import (
    AttentionShape,
    attend_tile,
    load_rows,
    lowest_key,
)
from graphwright.backends.triton.kernels.kernel import TritonKernel, define
from graphwright.backends.triton.kernels.sizes import next_power_of_two, quotient_up

__all__ = ["combine_splits", "decode_attention", "default_splits"]

_PROGRAMS = 128  # of one token, that splits should give: about one for each multiprocessor


@triton.jit
def decode_attention_kernel(
    batch, q, k_cache, v_cache, k_scales, v_scales, slopes, sinks, positions, sequences,
    block_table, partial, tops, totals, out,
    KV_HEADS: tl.constexpr, SHARED: tl.constexpr, DIM: tl.constexpr, VALUE_DIM: tl.constexpr,
    Q_STRIDE: tl.constexpr, BLOCK_STRIDE: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    SCALE: tl.constexpr, SOFTCAP: tl.constexpr, WINDOW: tl.constexpr, FIRST: tl.constexpr,
    CHUNK: tl.constexpr, BLOCK_D: tl.constexpr, REST_D: tl.constexpr, BLOCK_V: tl.constexpr,
    PACKED: tl.constexpr, PACKS: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
    SPLITS: tl.constexpr, SHORTEST: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    if token >= tl.load(batch):
        return
    kv_head, split = tl.program_id(1) // PACKS, tl.program_id(2)
    row = tl.arange(0, ROWS)
    shared = tl.program_id(1) % PACKS * PACKED + row
    inside = (row < PACKED) & (shared < SHARED)
    head = kv_head * SHARED + tl.where(inside, shared, 0)
    at = tl.load(positions + token).to(tl.int32)
    lowest = lowest_key(at, WINDOW, CHUNK)
    start = lowest // KEYS * KEYS
    tiles = (at - start) // KEYS + 1
    length = tl.maximum((tiles + SPLITS - 1) // SPLITS, SHORTEST)  # tiles of a part
    begin = start + split * length * KEYS
    end = tl.minimum(begin + length * KEYS, at + 1)
    place = token * (KV_HEADS * SHARED) + head

    top = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    if SPLITS > 1:
        if begin >= end:
            tl.store(tops + place * SPLITS + split, top, mask=inside)
            tl.store(totals + place * SPLITS + split, total, mask=inside)
            return
    else:
        if sinks is not None:
            top = tl.load(sinks + head) * 1.4426950408889634
            total += 1.0
    result = tl.zeros((ROWS, BLOCK_V), tl.float32)
    q_rows = q + token * Q_STRIDE + head * DIM
    query = load_rows(q_rows, inside, 0, DIM, BLOCK_D)
    rest = query
    if REST_D > 0:
        rest = load_rows(q_rows, inside, BLOCK_D, DIM, REST_D)
    slope = None
    if slopes is not None:
        slope = tl.load(slopes + head)
    position = at + row * 0
    table = block_table + tl.load(sequences + token) * tl.load(batch + 2)
    if FIRST > 0:  # noqa: SIM102 - a constant, unlike the next condition
        if split == 0:
            for first in range(0, tl.minimum((FIRST + KEYS - 1) // KEYS * KEYS, start), KEYS):
                total, top, result = attend_tile(
                    query, rest, total, top, result, first, lowest, at + 1, position, slope,
                    table, kv_head, k_cache, v_cache, k_scales, v_scales, DIM, VALUE_DIM,
                    BLOCK_STRIDE, BLOCK_SIZE, SCALE, SOFTCAP, WINDOW, FIRST, CHUNK, BLOCK_D,
                    REST_D, BLOCK_V, KEYS, True,
                )  # fmt: skip
    for first in range(begin, end, KEYS):
        total, top, result = attend_tile(
            query, rest, total, top, result, first, lowest, at + 1, position, slope, table,
            kv_head, k_cache, v_cache, k_scales, v_scales, DIM, VALUE_DIM, BLOCK_STRIDE,
            BLOCK_SIZE, SCALE, SOFTCAP, WINDOW, FIRST, CHUNK, BLOCK_D, REST_D, BLOCK_V, KEYS, True,
        )  # fmt: skip
    d = tl.arange(0, BLOCK_V)
    mask = inside[:, None] & (d < VALUE_DIM)[None, :]
    if SPLITS == 1:
        result = (result / total[:, None]).to(out.dtype.element_ty)
        tl.store(out + place[:, None] * VALUE_DIM + d[None, :], result, mask=mask)
    else:
        part = place * SPLITS + split
        tl.store(partial + part[:, None] * VALUE_DIM + d[None, :], result, mask=mask)
        tl.store(tops + part, top, mask=inside)
        tl.store(totals + part, total, mask=inside)


@triton.jit
def combine_splits_kernel(
    batch, partial, tops, totals, sinks, out,
    HEADS: tl.constexpr, VALUE_DIM: tl.constexpr, SPLITS: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    token, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    if token >= tl.load(batch):
        return
    place = token * HEADS + head
    split = place * SPLITS + tl.arange(0, SPLITS)
    d = tl.arange(0, BLOCK_V)
    top = tl.load(tops + split)
    highest = tl.max(top, axis=0)
    if sinks is not None:
        sink = tl.load(sinks + head) * 1.4426950408889634
        highest = tl.maximum(highest, sink)
    weight = tl.exp2(top - highest)
    total = tl.sum(weight * tl.load(totals + split), axis=0)
    if sinks is not None:
        total += tl.exp2(sink - highest)
    used = (top > float("-inf"))[:, None] & (d < VALUE_DIM)[None, :]
    part = tl.load(partial + split[:, None] * VALUE_DIM + d[None, :], mask=used, other=0.0)
    result = tl.sum(part * weight[:, None], axis=0) / total
    tl.store(out + place * VALUE_DIM + d, result.to(out.dtype.element_ty), mask=d < VALUE_DIM)


def default_splits(shape: AttentionShape, context: int) -> int:
    """How many parts the keys of a token have: enough programs for a single token, not more than
    the context has pieces of 128 positions. The same for every batch size, as results depend on it.
    """
    reach = min(context, shape.mask.span or context)
    wanted = next_power_of_two(quotient_up(_PROGRAMS, shape.kv_heads))
    return min(64, wanted, next_power_of_two(quotient_up(reach, 128)))


def decode_attention(
    shape: AttentionShape, splits: int, *, keys: int | None = None, num_warps: int = 4,
    num_stages: int | None = None,
) -> TritonKernel:  # fmt: skip
    """gw.cached_attention, token by token, after the step's keys are in the cache.

    Pointers: batch, q (rows [heads, dim]), k_cache, v_cache, (k_scales, v_scales), (slopes),
    positions int64 [T], sequences int32 [T] (see token_slots), block_table int32 [B, M], then for
    splits > 1 the float32 scratch partial [T, heads, splits, value_dim], tops and totals [T, heads,
    splits] that `combine_splits` turns into the result; for splits = 1 (sinks before positions, if
    any, and) out [T, heads, value_dim].
    """
    assert splits >= 1 and splits == next_power_of_two(splits)
    head, rest, value = shape.blocks
    wide = (head + rest + value) * (4 if shape.dtype == "float32" else 2)
    packed = min(shape.shared, 64)
    packs = quotient_up(shape.shared, packed)
    single = shape.dtype == "float32"
    keys = keys or (16 if single or wide > 1024 else 64 if wide <= 512 else 32)
    several = splits > 1
    given = shape.pointers() | {
        "positions": "int64", "sequences": "int32", "block_table": "int32",
        "partial": "float32" if several else None, "tops": "float32" if several else None,
        "totals": "float32" if several else None, "out": None if several else shape.dtype,
    }  # fmt: skip
    if several:
        given["sinks"] = None
    return define(
        "decode_attention",
        decode_attention_kernel,
        {"batch": "int32", **given},
        shape.constants() | {
            "PACKED": packed, "PACKS": packs, "ROWS": max(16, next_power_of_two(packed)),
            "KEYS": keys, "SPLITS": splits, "SHORTEST": quotient_up(128, keys),
        },
        grid=lambda size: (size["T"], shape.kv_heads * packs, splits),
        num_warps=num_warps,
        num_stages=num_stages or (1 if single else 2 if shape.cache == "int8" else 3),
    )  # fmt: skip


def combine_splits(shape: AttentionShape, splits: int) -> TritonKernel:
    """Pointers: batch, partial, tops, totals, (sinks), out [T, heads, value_dim]."""
    assert splits > 1
    block = shape.blocks[2]
    return define(
        "combine_splits",
        combine_splits_kernel,
        {
            "batch": "int32", "partial": "float32", "tops": "float32", "totals": "float32",
            "sinks": "float32" if shape.sinks else None, "out": shape.dtype,
        },
        {
            "HEADS": shape.heads, "VALUE_DIM": shape.value_dim, "SPLITS": splits,
            "BLOCK_V": block,
        },
        grid=lambda size: (size["T"], shape.heads, 1),
        num_warps=max(1, min(8, splits * block // 1024)),
    )  # fmt: skip
