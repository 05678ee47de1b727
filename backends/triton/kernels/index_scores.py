"""Scores of index queries and cached index keys, by which tokens choose what they attend to.

A program takes a token and a run of keys. It goes through the key heads, and through the query
heads that share one in tiles: each product is rectified, weighed and added up in registers. Keys
that a token does not see get minus infinity, as far as the last tile that has one of its keys.
"""

from __future__ import annotations

import triton
import triton.language as tl

from graphwright.backends.triton.kernels.attention_tile import blocks_of, dot, load_rows
from graphwright.backends.triton.kernels.float8 import widened
from graphwright.backends.triton.kernels.kernel import TritonKernel, define
from graphwright.backends.triton.kernels.sizes import next_power_of_two, quotient_up
from graphwright.ir.masks import Mask

__all__ = ["SCORED_KEYS", "index_scores"]

SCORED_KEYS = 64  # of one program, but for float32, which is multiplied without tensor cores
_HEADS = 64  # of one tile


@triton.jit
def index_scores_kernel(
    batch, q, weights, cache, positions, sequences, block_table, scores,
    KV_HEADS: tl.constexpr, SHARED: tl.constexpr, DIM: tl.constexpr, Q_STRIDE: tl.constexpr,
    W_STRIDE: tl.constexpr, BLOCK_STRIDE: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    WINDOW: tl.constexpr, FIRST: tl.constexpr, CHUNK: tl.constexpr, WIDTH: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_D: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    if token >= tl.load(batch):
        return
    at = tl.load(positions + token).to(tl.int32)
    first = tl.program_id(1) * KEYS
    if first > at:
        return
    table = block_table + tl.load(sequences + token) * tl.load(batch + 2)
    key = first + tl.arange(0, KEYS)
    inside = key <= at
    block = blocks_of(table, key, inside, BLOCK_SIZE)
    total = tl.zeros((KEYS,), tl.float32)
    for kv_head in range(KV_HEADS):
        row = kv_head * BLOCK_SIZE + key % BLOCK_SIZE
        k_rows = cache + block * BLOCK_STRIDE + row * DIM
        k = widened(load_rows(k_rows, inside, 0, DIM, BLOCK_D), q.dtype.element_ty)
        for start in range(0, SHARED, BLOCK_H):
            shared = start + tl.arange(0, BLOCK_H)
            known = shared < SHARED
            head = kv_head * SHARED + shared
            query = load_rows(q + token * Q_STRIDE + head * DIM, known, 0, DIM, BLOCK_D)
            product = dot(query, tl.trans(k), tl.zeros((BLOCK_H, KEYS), tl.float32))
            weight = tl.load(weights + token * W_STRIDE + head, mask=known, other=0.0)
            total += tl.sum(weight.to(tl.float32)[:, None] * tl.maximum(product, 0.0), axis=0)
    visible = inside
    if WINDOW > 0:
        visible = visible & ((at - key < WINDOW) | (key < FIRST))
    if CHUNK > 0:
        visible = visible & (at // CHUNK == key // CHUNK)
    total = tl.where(visible, total, float("-inf"))
    tl.store(scores + token * WIDTH + key, total)


def index_scores(
    heads: int, kv_heads: int, dim: int, *, q_stride: int, w_stride: int, block_stride: int,
    mask: Mask, context: int, block_size: int = 16, dtype: str = "float32",
    weights: str = "float32", cache: str = "float32",
) -> TritonKernel:  # fmt: skip
    """Pointers: batch, q (rows [heads, dim]), weights (rows [heads]), cache, positions int64 and
    sequences int32 (see token_slots), block_table int32 [B, M], scores float32 [T, width] with
    `width` the context in whole runs of SCORED_KEYS.

    After the step's keys are in the cache, which lie as those of attention do (kernels/rope.py).
    """
    assert heads % kv_heads == 0
    shared, width = heads // kv_heads, quotient_up(context, SCORED_KEYS) * SCORED_KEYS
    single = dtype == "float32"
    keys, together = (16, 16) if single else (SCORED_KEYS, _HEADS)
    return define(
        "index_scores",
        index_scores_kernel,
        {
            "batch": "int32", "q": dtype, "weights": weights, "cache": cache,
            "positions": "int64", "sequences": "int32", "block_table": "int32",
            "scores": "float32",
        },
        {
            "KV_HEADS": kv_heads, "SHARED": shared, "DIM": dim, "Q_STRIDE": q_stride,
            "W_STRIDE": w_stride, "BLOCK_STRIDE": block_stride, "BLOCK_SIZE": block_size,
            "WINDOW": mask.window or 0, "FIRST": mask.first, "CHUNK": mask.chunk or 0,
            "WIDTH": width, "BLOCK_H": max(16, min(together, next_power_of_two(shared))),
            "BLOCK_D": max(16, next_power_of_two(dim)), "KEYS": keys,
        },
        grid=lambda size: (size["T"], width // keys, 1),
        num_warps=4,
    )  # fmt: skip
