"""Attention of a ragged batch over the paged cache: who computes what.

The queries of one sequence are cut into tiles of consecutive tokens; a tile and a key head are one
item. Items differ in cost by the keys they see, so threads get contiguous runs of equal cost.
Tokens behind a sequence's last whole tile, and those of sequences that decode, are tiles of one
token. `attention_tile.py` computes a tile.
"""

from __future__ import annotations

from collections.abc import Callable

from tvm import tirx
from tvm.tirx.script import builder as T

from graphwright.backends.tvm.kernels.append_kv import advance, append_kv
from graphwright.backends.tvm.kernels.attention_shape import AttentionShape, Operands, Tile
from graphwright.backends.tvm.kernels.attention_tile import compute
from graphwright.backends.tvm.kernels.kernel import Expr, Kernel, define, registers
from graphwright.backends.tvm.kernels.loops import kernel_name, quotient, settle
from graphwright.backends.tvm.target import Cpu
from graphwright.ir.errors import BackendError
from graphwright.ir.masks import Mask

__all__ = ["append_kv", "attention"]


def attention(
    heads: int, kv_heads: int, dim: int, value_dim: int, *, q_stride: int, block_stride: int,
    scale: float, mask: Mask, softcap: float, slopes: bool, sinks: bool, cpu: Cpu,
) -> Kernel:  # fmt: skip
    """Pointers: batch, q, k_cache, v_cache, positions, query_start, block_table, (slopes [heads]),
    (sinks [heads]), out [T, heads * value_dim].

    As gw.cached_attention, after append_kv. Positions must rise by one within a sequence.
    """
    if heads % kv_heads:
        raise BackendError(f"attention: {heads} heads cannot share {kv_heads} key heads evenly.")
    shape = AttentionShape(
        heads, kv_heads, dim, value_dim, q_stride, block_stride, scale, mask, softcap, cpu.lanes
    )
    pointers = [("batch", "int32"), ("q", "float32"), ("k_cache", "float32")]
    pointers += [("v_cache", "float32"), ("positions", "int64"), ("query_start", "int32")]
    pointers += [("block_table", "int32")] + [("slopes", "float32")] * slopes
    pointers += [("sinks", "float32")] * sinks + [("out", "float32")]

    def body(thread: Expr, threads: Expr, rows: Expr, *buffers: Expr) -> None:
        given = Operands(**{name: each for (name, _), each in zip(pointers, buffers, strict=True)})
        _for_each_share(shape, given, thread, threads, rows)

    name = kernel_name(
        "attention", cpu, h=heads, kv=kv_heads, d=dim, v=value_dim, qs=q_stride, bs=block_stride,
        by=scale, mask=mask, cap=softcap, slopes=slopes, sinks=sinks,
    )  # fmt: skip
    return define(name, pointers, body)


def _for_each_share(
    shape: AttentionShape, given: Operands, thread: Expr, threads: Expr, rows: Expr
) -> None:
    """Walks over the tiles twice: to add up their costs, and to compute this thread's."""
    total, before = registers(2, 1, "int64")
    T.buffer_store(total, T.int64(0), [0])
    T.buffer_store(before, T.int64(0), [0])

    def count(tile: Tile) -> None:
        cost = tirx.Cast("int64", tile.count_blocks(shape) * (tile.tokens * shape.items))
        T.buffer_store(total, total[0] + cost, [0])

    _for_each_tile(shape, given, rows, count)
    low = T.bind(quotient(total[0] * thread, threads))
    high = T.bind(quotient(total[0] * (thread + 1), threads))

    def share(tile: Tile) -> None:
        cost = settle(tirx.Cast("int64", tile.count_blocks(shape) * tile.tokens), "int64")
        first = settle(_started(low - before[0], cost, shape.items), "int32")
        last = settle(_started(high - before[0], cost, shape.items), "int32")
        T.buffer_store(before, before[0] + cost * shape.items, [0])
        with T.serial(first, last) as item:
            compute(shape, given, tile, item)

    _for_each_tile(shape, given, rows, share)


def _started(cost_before: Expr, cost: Expr, items: int) -> Expr:
    """How many of a tile's items, each of `cost`, start less than `cost_before` after its start."""
    count = quotient(cost_before + cost - 1, cost)
    return tirx.Cast("int32", tirx.max(tirx.min(count, T.int64(items)), T.int64(0)))


def _for_each_tile(
    shape: AttentionShape, given: Operands, rows: Expr, body: Callable[[Tile], None]
) -> None:
    """Emits body for whole tiles and for tiles of one token, inside a loop over the batch."""
    token, sequence = registers(2, 1, "int32")
    T.buffer_store(token, T.int32(0), [0])
    T.buffer_store(sequence, T.int32(0), [0])

    def one(tokens: int) -> None:
        first = settle(token[0], "int32")
        position = settle(tirx.Cast("int32", given.positions[first]), "int32")
        table = settle(sequence[0] * given.batch[2], "int32")
        body(Tile(first, tokens, position, table))
        T.buffer_store(token, first + tokens, [0])

    with T.While(token[0] < rows):
        advance(sequence, token[0], given.batch, given.query_start)
        if shape.tile_tokens == 1:
            one(1)
            return
        left = given.query_start[sequence[0] + 1] - token[0]
        with T.If(left >= shape.tile_tokens):
            with T.Then():
                one(shape.tile_tokens)
            with T.Else():
                one(1)
