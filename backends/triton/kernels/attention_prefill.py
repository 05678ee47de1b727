"""Attention of many tokens: tiles of queries of a ragged batch, over the paged cache.

A tile holds up to ROWS pairs (token, query head) of one sequence whose heads read the same key
head, so that a key is loaded once for all of them. Tiles of keys that no query of the tile sees are
not visited, and those that all of them see skip the masks. The grid depends on the bucket only:
there are at most (tokens / tile tokens + sequences) tiles; each finds its sequence in query_start.

A tile of 128 x 64 scores with head dim 128 is 4.2 MFLOP for the tensor cores and, at some 10
operations a score, 82 thousand for the other units, whose rate is a sixteenth to a thirty-second:
a quarter to a third of the time if nothing overlaps, so masks are kept out of the inner tiles.
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

__all__ = ["prefill_attention", "prefill_sizes"]

_SEQUENCES = 64


@triton.jit
def tile_of_batch(tile, query_start, count, TOKENS: tl.constexpr, SEQUENCES: tl.constexpr):
    """(sequence, number among its tiles) of `tile`; the sequence is `count` beyond the last."""
    sequence = tile * 0
    before = tile * 0  # tiles of the sequences before that one
    seen = tile * 0
    for first in range(0, count, SEQUENCES):
        each = first + tl.arange(0, SEQUENCES)
        begin = tl.load(query_start + each, mask=each < count, other=0)
        end = tl.load(query_start + each + 1, mask=each < count, other=0)
        tiles = (end - begin + TOKENS - 1) // TOKENS
        passed = (each < count) & (seen + tl.cumsum(tiles, axis=0) <= tile)
        sequence += tl.sum(passed.to(tl.int32), axis=0)
        before += tl.sum(tl.where(passed, tiles, 0), axis=0)
        seen += tl.sum(tiles, axis=0)
    return sequence, tile - before


@triton.jit
def prefill_attention_kernel(
    batch, q, k_cache, v_cache, k_scales, v_scales, slopes, sinks, positions, query_start,
    block_table, out,
    KV_HEADS: tl.constexpr, SHARED: tl.constexpr, DIM: tl.constexpr, VALUE_DIM: tl.constexpr,
    Q_STRIDE: tl.constexpr, BLOCK_STRIDE: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    SCALE: tl.constexpr, SOFTCAP: tl.constexpr, WINDOW: tl.constexpr, FIRST: tl.constexpr,
    CHUNK: tl.constexpr, BLOCK_D: tl.constexpr, REST_D: tl.constexpr, BLOCK_V: tl.constexpr,
    PACKED: tl.constexpr, PACKS: tl.constexpr, TOKENS: tl.constexpr, ROWS: tl.constexpr,
    KEYS: tl.constexpr, SEQUENCES: tl.constexpr,
):  # fmt: skip
    count = tl.load(batch + 1)
    sequence, number = tile_of_batch(tl.program_id(0), query_start, count, TOKENS, SEQUENCES)
    if sequence >= count:
        return
    kv_head = tl.program_id(1) // PACKS
    begin, end = tl.load(query_start + sequence), tl.load(query_start + sequence + 1)
    begin += number * TOKENS
    row = tl.arange(0, ROWS)
    shared = tl.program_id(1) % PACKS * PACKED + row % PACKED
    token = begin + row // PACKED
    inside = (row < TOKENS * PACKED) & (token < end) & (shared < SHARED)
    # rows outside copy the first token's position, so that they see keys and stay finite
    low = tl.load(positions + begin).to(tl.int32)
    position = tl.where(inside, low + row // PACKED, low)
    head = tl.where(inside, kv_head * SHARED + shared, kv_head * SHARED)
    at = tl.where(inside, token, begin).to(tl.int64)
    q_rows = q + at * Q_STRIDE + head * DIM
    query = load_rows(q_rows, inside, 0, DIM, BLOCK_D)
    rest = query
    if REST_D > 0:
        rest = load_rows(q_rows, inside, BLOCK_D, DIM, REST_D)
    slope = None
    if slopes is not None:
        slope = tl.load(slopes + head)
    top = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    if sinks is not None:
        top = tl.load(sinks + head) * 1.4426950408889634
        total += 1.0
    result = tl.zeros((ROWS, BLOCK_V), tl.float32)
    table = block_table + sequence * tl.load(batch + 2)

    high = low + tl.minimum(TOKENS, end - begin) - 1  # the last query's position
    lowest = lowest_key(low, WINDOW, CHUNK)
    start = lowest // KEYS * KEYS
    # keys that every query sees: from the last one's lowest key to the first one's own
    open_start = (lowest_key(high, WINDOW, CHUNK) + KEYS - 1) // KEYS * KEYS
    open_end = tl.maximum((low + 1) // KEYS * KEYS, start)
    open_start = tl.minimum(tl.maximum(open_start, start), open_end)
    if FIRST > 0:
        for first in range(0, tl.minimum((FIRST + KEYS - 1) // KEYS * KEYS, start), KEYS):
            total, top, result = attend_tile(
                query, rest, total, top, result, first, lowest, high + 1, position, slope, table,
                kv_head, k_cache, v_cache, k_scales, v_scales, None, None, DIM, VALUE_DIM,
                BLOCK_STRIDE, BLOCK_SIZE, SCALE, SOFTCAP, WINDOW, FIRST, CHUNK, BLOCK_D, REST_D,
                BLOCK_V, KEYS, True,
            )  # fmt: skip
    if WINDOW > 0 or CHUNK > 0:
        for first in range(start, open_start, KEYS):
            total, top, result = attend_tile(
                query, rest, total, top, result, first, lowest, high + 1, position, slope, table,
                kv_head, k_cache, v_cache, k_scales, v_scales, None, None, DIM, VALUE_DIM,
                BLOCK_STRIDE, BLOCK_SIZE, SCALE, SOFTCAP, WINDOW, FIRST, CHUNK, BLOCK_D, REST_D,
                BLOCK_V, KEYS, True,
            )  # fmt: skip
    for first in range(open_start, open_end, KEYS):
        total, top, result = attend_tile(
            query, rest, total, top, result, first, lowest, high + 1, position, slope, table,
            kv_head, k_cache, v_cache, k_scales, v_scales, None, None, DIM, VALUE_DIM, BLOCK_STRIDE,
            BLOCK_SIZE, SCALE, SOFTCAP, WINDOW, FIRST, CHUNK, BLOCK_D, REST_D, BLOCK_V, KEYS,
            False,
        )  # fmt: skip
    for first in range(open_end, high + 1, KEYS):
        total, top, result = attend_tile(
            query, rest, total, top, result, first, lowest, high + 1, position, slope, table,
            kv_head, k_cache, v_cache, k_scales, v_scales, None, None, DIM, VALUE_DIM, BLOCK_STRIDE,
            BLOCK_SIZE, SCALE, SOFTCAP, WINDOW, FIRST, CHUNK, BLOCK_D, REST_D, BLOCK_V, KEYS,
            True,
        )  # fmt: skip
    result = result / total[:, None]
    d = tl.arange(0, BLOCK_V)
    target = out + (at * (KV_HEADS * SHARED) + head)[:, None] * VALUE_DIM + d[None, :]
    mask = inside[:, None] & (d < VALUE_DIM)[None, :]
    tl.store(target, result.to(out.dtype.element_ty), mask=mask)


def prefill_sizes(shape: AttentionShape, arch: int) -> dict[str, int]:
    """Sizes of `prefill_attention`'s tiles other than its defaults: from sm_90 on 64 keys do not
    spill, and small tiles of 4 warps, of which two share a multiprocessor, are 1.6 times as fast
    (H200, head dim 128, 2,048 tokens: 138 µs for 225).
    """
    head, rest, value = shape.blocks
    plain = shape.dtype != "float32" and shape.cache == shape.dtype
    if arch < 90 or not plain or rest or (head, value) != (128, 128) or shape.shared > 16:
        return {}
    return {"rows": 64, "keys": 64, "num_warps": 4, "num_stages": 3}


def prefill_attention(
    shape: AttentionShape, *, rows: int | None = None, keys: int | None = None,
    num_warps: int | None = None, num_stages: int | None = None, tokens: int = 1 << 30,
    sequences: int = 256,
) -> TritonKernel:  # fmt: skip
    """gw.cached_attention for any ragged batch, after the step's keys are in the cache.

    Pointers: batch, q (rows [heads, dim]), k_cache, v_cache, (k_scales, v_scales), (slopes),
    (sinks), positions int64 [T], query_start int32 [B+1], block_table int32 [B, M],
    out [T, heads, value_dim]. rows (queries x shared heads) and keys are the sizes of a tile (by
    default what compiles without spills for sm_80; 64 keys suit sm_90 up to head dim 128);
    `tokens`, the bucket's, keeps tiles from being larger than the work.
    """
    head, rest, value = shape.blocks
    wide = (head + rest + value) * (4 if shape.dtype == "float32" else 2)  # bytes of k and v
    packed, packs = shape.packs
    single = shape.dtype == "float32"
    rows = rows or (16 if single else 128 if wide <= 512 else 64 if wide <= 1024 else 32)
    rows = max(16, next_power_of_two(packed), min(rows, next_power_of_two(tokens * packed)))
    keys = keys or (16 if single else 32 if wide <= 1024 else 16)
    # a third stage of a cache that is converted in registers would spill
    stages = 3 if wide <= 512 and not shape.bytes_each else 2
    tile_tokens = rows // packed
    return define(
        "prefill_attention",
        prefill_attention_kernel,
        {
            "batch": "int32", **shape.pointers(), "positions": "int64", "query_start": "int32",
            "block_table": "int32", "out": shape.dtype,
        },
        shape.constants() | {
            "PACKED": packed, "PACKS": packs, "TOKENS": tile_tokens, "ROWS": rows, "KEYS": keys,
            "SEQUENCES": _SEQUENCES,
        },
        grid=lambda size: (
            quotient_up(size["T"], tile_tokens) + min(sequences, size["T"]),
            shape.kv_heads * packs,
            1,
        ),
        num_warps=num_warps or (4 if rows <= 16 or wide <= 256 else 8),
        num_stages=num_stages or (1 if single else stages),
    )  # fmt: skip
