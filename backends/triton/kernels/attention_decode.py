"""Attention of few tokens with long contexts: the keys of each token split over programs.

A program takes one token, the query heads that share a key head, and one of SPLITS parts of the
keys that the token sees. Where the parts begin depends on the token's position alone, so that a
token's result does not depend on what else is in the batch; the last program of a token and a key
head to come adds the parts in their order. A token whose keys fit into one part needs none of that.
Decode reads each key and value once and is bound by those bytes: tensor cores work on 16 rows even
for one query head, 16 operations a byte, a tenth of what they could do.

Source: Dao et al., Flash-Decoding for long-context inference, 2023.
"""

from __future__ import annotations

import triton
import triton.language as tl

from graphwright.backends.triton.kernels.attention_tile import (
    AttentionShape,
    attend_tile,
    blocks_of,
    load_rows,
    lowest_key,
    seen,
)
from graphwright.backends.triton.kernels.early import let_next_begin, wait_for_inputs
from graphwright.backends.triton.kernels.epilogue import is_last
from graphwright.backends.triton.kernels.kernel import TritonKernel, define
from graphwright.backends.triton.kernels.sizes import next_power_of_two, quotient_up

__all__ = ["decode_attention", "decode_scratch", "default_splits", "is_deep"]

_COMBINED = 4096  # numbers of parts that four warps load at once: 32 registers
_PROGRAMS = 128  # of one token, that splits should give: about one for each multiprocessor


@triton.jit
def decode_attention_kernel(
    batch, q, k_cache, v_cache, k_scales, v_scales, slopes, sinks, positions, sequences,
    block_table, chosen, partial, tops, totals, counters, out,
    KV_HEADS: tl.constexpr, SHARED: tl.constexpr, DIM: tl.constexpr, VALUE_DIM: tl.constexpr,
    Q_STRIDE: tl.constexpr, BLOCK_STRIDE: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    SCALE: tl.constexpr, SOFTCAP: tl.constexpr, WINDOW: tl.constexpr, FIRST: tl.constexpr,
    CHUNK: tl.constexpr, BLOCK_D: tl.constexpr, REST_D: tl.constexpr, BLOCK_V: tl.constexpr,
    PACKED: tl.constexpr, PACKS: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
    SPLITS: tl.constexpr, SHORTEST: tl.constexpr, FEW: tl.constexpr, TOGETHER: tl.constexpr,
    ALONE: tl.constexpr, COUNT: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    if ALONE:
        let_next_begin(EARLY)
    token = tl.program_id(0).to(tl.int64)
    # at once, as each takes a trip to the L2 cache; behind the step's tokens nobody uses them
    at = tl.load(positions + token).to(tl.int32)
    entry = 0
    if not ALONE:  # a step has a token
        count = tl.load(batch)
        entry = tl.load(sequences + token) * tl.load(batch + 2)
        # the others are never negative: that they count here keeps their loads in front of the
        # branch
        if (token >= count) | (at < 0) | (entry < 0):
            return
    table = block_table + entry
    kv_head, split = tl.program_id(1) // PACKS, tl.program_id(2)
    head, inside = heads_of(kv_head, SHARED, PACKED, PACKS, ROWS)
    lowest = lowest_key(at, WINDOW, CHUNK)
    last = at
    if chosen is not None:  # what is counted are the chosen keys
        lowest = at * 0
        last = tl.minimum(at, COUNT - 1)
        chosen += token * COUNT
    start = lowest // KEYS * KEYS
    tiles = (last - start) // KEYS + 1
    length = tl.maximum((tiles + SPLITS - 1) // SPLITS, SHORTEST)  # tiles of a part
    begin = start + split * length * KEYS
    end = tl.minimum(begin + length * KEYS, last + 1)
    place = token * (KV_HEADS * SHARED) + head

    parts = (tiles + length - 1) // length  # that have keys
    blocks = None
    if ALONE:
        # the first tile's blocks, of what the step began with, while the launches in front end
        key = begin + tl.arange(0, KEYS)
        blocks = blocks_of(table, key, seen(key, lowest, end, FIRST), BLOCK_SIZE)
        wait_for_inputs(EARLY)
    if SPLITS > 1:  # noqa: SIM102 - a constant, unlike the next condition
        if split >= parts:
            return
    top = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    result = tl.zeros((ROWS, BLOCK_V), tl.float32)
    q_rows = q + token * Q_STRIDE + head * DIM
    query = load_rows(q_rows, inside, 0, DIM, BLOCK_D)
    rest = query
    if REST_D > 0:
        rest = load_rows(q_rows, inside, BLOCK_D, DIM, REST_D)
    slope = None
    if slopes is not None:
        slope = tl.load(slopes + head)
    position = at + head * 0
    if FIRST > 0:  # noqa: SIM102 - a constant, unlike the next condition
        if split == 0:
            for first in range(0, tl.minimum((FIRST + KEYS - 1) // KEYS * KEYS, start), KEYS):
                total, top, result = attend_tile(
                    query, rest, total, top, result, first, lowest, at + 1, position, slope,
                    table, kv_head, k_cache, v_cache, k_scales, v_scales, None, None, DIM,
                    VALUE_DIM, BLOCK_STRIDE, BLOCK_SIZE, SCALE, SOFTCAP, WINDOW, FIRST, CHUNK,
                    BLOCK_D, REST_D, BLOCK_V, KEYS, True,
                )  # fmt: skip
    for first in range(begin, end, KEYS):
        total, top, result = attend_tile(
            query, rest, total, top, result, first, lowest, last + 1, position, slope, table,
            kv_head, k_cache, v_cache, k_scales, v_scales, blocks, chosen, DIM, VALUE_DIM,
            BLOCK_STRIDE, BLOCK_SIZE, SCALE, SOFTCAP, WINDOW, FIRST, CHUNK, BLOCK_D, REST_D,
            BLOCK_V, KEYS, True,
        )  # fmt: skip
        if ALONE:
            key += KEYS
            blocks = blocks_of(table, key, seen(key, lowest, end, FIRST), BLOCK_SIZE)
    if SPLITS > 1:
        if parts > 1:
            d = tl.arange(0, BLOCK_V)
            part = place * SPLITS + split
            mask = inside[:, None] & (d < VALUE_DIM)[None, :]
            tl.store(partial + part[:, None] * VALUE_DIM + d[None, :], result, mask=mask)
            tl.store(tops + part, top, mask=inside)
            tl.store(totals + part, total, mask=inside)
            counter = counters + token * tl.num_programs(1) + tl.program_id(1)
            if is_last(counter, parts):
                # rows as few as there are, not as tensor cores take
                heads, known = heads_of(kv_head, SHARED, PACKED, PACKS, FEW)
                row = token * (KV_HEADS * SHARED) + heads
                sums, highest, whole = combined(
                    partial, tops, totals, row * SPLITS, parts, known, VALUE_DIM, BLOCK_V, TOGETHER
                )
                write(out, whole, sums, highest, row, heads, known, sinks, VALUE_DIM)
        else:
            write(out, result, total, top, place, head, inside, sinks, VALUE_DIM)
    else:
        write(out, result, total, top, place, head, inside, sinks, VALUE_DIM)


@triton.jit
def heads_of(
    kv_head, SHARED: tl.constexpr, PACKED: tl.constexpr, PACKS: tl.constexpr, ROWS: tl.constexpr
):
    """(the query heads of a program [ROWS], are there such)."""
    row = tl.arange(0, ROWS)
    shared = tl.program_id(1) % PACKS * PACKED + row
    inside = (row < PACKED) & (shared < SHARED)
    return kv_head * SHARED + tl.where(inside, shared, 0), inside


@triton.jit
def write(out, result, total, top, place, head, inside, sinks, VALUE_DIM: tl.constexpr):
    """Stores result / total [rows, values] at `place`, with a sink among what was summed."""
    if sinks is not None:
        sink = tl.load(sinks + head) * 1.4426950408889634
        highest = tl.maximum(top, sink)
        fade = tl.exp2(top - highest)
        total = total * fade + tl.exp2(sink - highest)
        result = result * fade[:, None]
    d = tl.arange(0, result.shape[1])
    mask = inside[:, None] & (d < VALUE_DIM)[None, :]
    final = (result / total[:, None]).to(out.dtype.element_ty)
    tl.store(out + place[:, None] * VALUE_DIM + d[None, :], final, mask=mask)


@triton.jit
def combined(
    partial, tops, totals, first, parts, inside, VALUE_DIM: tl.constexpr, BLOCK_V: tl.constexpr,
    TOGETHER: tl.constexpr,
):  # fmt: skip
    """(totals, tops, results) of all parts of the rows whose first part is `first` [rows].

    Of TOGETHER parts everything is loaded at once: one trip to the L2 cache.
    """
    ROWS: tl.constexpr = first.shape[0]
    top = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    result = tl.zeros((ROWS, BLOCK_V), tl.float32)
    d = tl.arange(0, BLOCK_V)
    for base in range(0, parts, TOGETHER):
        # parts first: the rows go to the warps, and each thread adds what it loaded
        part = base + tl.arange(0, TOGETHER)
        known = (part < parts)[:, None] & inside[None, :]
        at = first[None, :] + part[:, None]
        row = partial + at[:, :, None] * VALUE_DIM + d[None, None, :]
        mask = known[:, :, None] & (d < VALUE_DIM)[None, None, :]
        value = tl.load(row, mask=mask, other=0.0, cache_modifier=".cg")
        own = tl.load(tops + at, mask=known, other=float("-inf"), cache_modifier=".cg")
        sums = tl.load(totals + at, mask=known, other=0.0, cache_modifier=".cg")
        risen = tl.maximum(top, tl.max(own, axis=0))
        level = tl.where(inside, risen, 0.0)
        weight = tl.exp2(own - level[None, :])
        fade = tl.exp2(top - level)
        total = total * fade + tl.sum(weight * sums, axis=0)
        result = result * fade[:, None] + tl.sum(value * weight[:, :, None], axis=0)
        top = risen
    return total, top, result


def default_splits(shape: AttentionShape, context: int) -> int:
    """How many parts the keys of a token have: enough programs for a single token, not more than
    the context has pieces of 128 positions. The same for every batch size, as results depend on it.
    """
    reach = min(context, shape.mask.span or context, shape.chosen or context)
    wanted = next_power_of_two(quotient_up(_PROGRAMS, shape.kv_heads * shape.packs[1]))
    return min(64, wanted, next_power_of_two(quotient_up(reach, 128)))


def decode_attention(
    shape: AttentionShape, splits: int, *, keys: int | None = None, num_warps: int = 0,
    num_stages: int | None = None, deep: bool = False, alone: bool = False,
) -> TritonKernel:  # fmt: skip
    """gw.cached_attention, token by token, after the step's keys are in the cache.

    Pointers: batch, q (rows [heads, dim]), k_cache, v_cache, (k_scales, v_scales), (slopes),
    (sinks), positions int64 and sequences int32 (see token_slots), both of the whole bucket, though
    those behind T mean nothing, block_table int32 [B, M],
    (chosen int32 [T, count] of choose_keys), for splits > 1 the float32 scratch partial
    [T, heads, splits, value_dim], tops and totals [T, heads, splits] and counters int32, zero
    before and after, of `decode_scratch`; out
    [T, heads, value_dim]. deep: see `is_deep`; results may differ in rounding. alone: for buckets
    of a single token, whose positions the step began with: those and the blocks of keys are looked
    up before the launches in front have ended; `sequences` is absent.
    """
    assert splits >= 1 and splits == next_power_of_two(splits)
    assert not (alone and shape.chosen), "what is chosen is not known when a step begins"
    head, rest, value = shape.blocks
    wide = (head + rest + value) * (4 if shape.dtype == "float32" else 2)
    packed, packs = shape.packs
    few = next_power_of_two(packed)
    single = shape.dtype == "float32"
    large = deep and wide <= 512 and not shape.bytes_each  # one tile of 128 instead of two of 64
    keys = keys or (16 if single or wide > 1024 else 128 if large else 64 if wide <= 512 else 32)
    several = splits > 1
    # Triton's count: the table's entries are loaded a stage before the keys. With 3 a tile is asked
    # for when the one before it is done, with 5 while that one is computed
    stages = 1 if single else 5 if deep and not large else 2 if shape.bytes_each else 3
    if alone and stages > 2:
        stages -= 1  # that of the entries
    given = shape.pointers() | {
        "positions": "int64", "sequences": None if alone else "int32", "block_table": "int32",
        "chosen": "int32" if shape.chosen else None,
        "partial": "float32" if several else None, "tops": "float32" if several else None,
        "totals": "float32" if several else None, "counters": "int32" if several else None,
        "out": shape.dtype,
    }  # fmt: skip
    return define(
        "decode_attention",
        decode_attention_kernel,
        {"batch": "int32", **given},
        shape.constants() | {
            "PACKED": packed, "PACKS": packs, "ROWS": max(16, few),
            "KEYS": keys, "SPLITS": splits, "SHORTEST": quotient_up(128, keys), "FEW": few,
            "ALONE": alone, "COUNT": shape.chosen,
            "TOGETHER": max(1, min(splits, _COMBINED // (few * value))),
        },
        grid=lambda size: (1 if alone else size["T"], shape.kv_heads * packs, splits),
        # nothing else hides what the programs of a single token wait for
        num_warps=num_warps or (8 if alone and keys >= 64 else 4),
        num_stages=num_stages or stages,
    )  # fmt: skip


def is_deep(shape: AttentionShape, splits: int, tokens: int, multiprocessors: int) -> bool:
    """Are steps of so many tokens to have twice as many keys on their way, in twice the shared
    memory: tiles of 128 instead of 64, or, where these are more than registers hold, a second tile?
    Where programs are few, each waits for what it has asked for; where there are many, they hide
    each other's waiting, and more of them fit without.
    """
    programs = tokens * shape.kv_heads * shape.packs[1] * splits
    return shape.dtype != "float32" and programs <= 2 * multiprocessors


def decode_scratch(shape: AttentionShape, splits: int, tokens: int) -> tuple[int, int, int]:
    """Bytes of `partial`, of `tops` and `totals` each, and of `counters`, for so many tokens."""
    each = 4 * tokens * shape.heads * splits
    return each * shape.value_dim, each, 4 * tokens * shape.kv_heads * shape.packs[1]
