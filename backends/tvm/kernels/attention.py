"""Attention of a ragged batch over the paged cache: who computes what.

The queries of one sequence are cut into tiles of consecutive tokens. Tokens behind a sequence's
last whole tile, and those of sequences that decode, are tiles of one token; where `split`, their
keys are cut into segments (Flash-Decoding, Dao et al., 2023), which `attention_combine.py` puts
together. A tile, a run of heads and a segment are one unit. Units differ in cost by the keys they
see, so threads get contiguous runs of equal cost. `attention_tile.py` computes a unit.
"""

from __future__ import annotations

from collections.abc import Callable

from tvm import tirx
from tvm.tirx.script import builder as T

from graphwright.backends.tvm.kernels.append_kv import advance, block_name
from graphwright.backends.tvm.kernels.attention_shape import AttentionShape, Operands, Tile
from graphwright.backends.tvm.kernels.attention_tile import compute
from graphwright.backends.tvm.kernels.kernel import Expr, Kernel, define, registers
from graphwright.backends.tvm.kernels.kv_values import KvBlock
from graphwright.backends.tvm.kernels.loops import kernel_name, quotient, remainder, settle
from graphwright.backends.tvm.target import Cpu
from graphwright.ir.errors import BackendError
from graphwright.ir.masks import Mask

__all__ = ["attention", "for_each_tile"]


def attention(
    heads: int, block: KvBlock, *, q_stride: int, scale: float, mask: Mask, softcap: float,
    slopes: bool, sinks: bool, split: bool = False, cpu: Cpu,
) -> Kernel:  # fmt: skip
    """Pointers: batch, q, k_cache, v_cache, (k_scale, v_scale), positions, query_start,
    block_table, (slopes [heads]), (sinks [heads]), (partial), out [T, heads * value_dim].

    As gw.cached_attention, after append_kv. Positions must rise by one within a sequence.
    split: tokens that come alone leave their results in `partial`, as attention_combine takes them.
    """
    if heads % block.kv_heads:
        raise BackendError(
            f"attention: {heads} heads cannot share {block.kv_heads} key heads evenly."
        )
    shape = AttentionShape(heads, block, q_stride, scale, mask, softcap, cpu.lanes, split)
    pointers = [("batch", "int32"), ("q", "float32"), *block.pointers, ("positions", "int64")]
    pointers += [("query_start", "int32"), ("block_table", "int32")]
    pointers += [("slopes", "float32")] * slopes + [("sinks", "float32")] * sinks
    pointers += [("partial", "float32")] * split + [("out", "float32")]

    def body(thread: Expr, threads: Expr, rows: Expr, *buffers: Expr) -> None:
        given = Operands(**{name: each for (name, _), each in zip(pointers, buffers, strict=True)})
        _for_each_share(shape, given, thread, threads, rows)

    name = kernel_name(
        "attention", cpu, h=heads, block=block_name(block), qs=q_stride, by=scale, mask=mask,
        cap=softcap, slopes=slopes, sinks=sinks, split=split,
    )  # fmt: skip
    return define(name, pointers, body)


def _for_each_share(
    shape: AttentionShape, given: Operands, thread: Expr, threads: Expr, rows: Expr
) -> None:
    """Walks over the tiles twice: to add up their costs, and to compute this thread's."""
    total, before = registers(2, 1, "int64")
    T.buffer_store(total, T.int64(0), [0])
    T.buffer_store(before, T.int64(0), [0])

    def measure(tile: Tile) -> tuple[Expr, Expr, Expr, Expr]:
        """Its blocks, those of a segment, its units, and what each of them costs."""
        blocks = settle(tile.count_blocks(shape.mask), "int32")
        segment = settle(tile.segment_blocks(shape), "int32")
        units = settle(quotient(blocks + segment - 1, segment) * shape.items, "int32")
        cost = settle(tirx.Cast("int64", tirx.min(segment, blocks) * tile.tokens), "int64")
        return blocks, segment, units, cost

    def count(tile: Tile) -> None:
        _, _, units, cost = measure(tile)
        T.buffer_store(total, total[0] + cost * tirx.Cast("int64", units), [0])

    for_each_tile(shape, given, rows, count)
    low = T.bind(quotient(total[0] * thread, threads))
    high = T.bind(quotient(total[0] * (thread + 1), threads))

    def share(tile: Tile) -> None:
        blocks, segment, units, cost = measure(tile)
        first = settle(_started(low - before[0], cost, units), "int32")
        last = settle(_started(high - before[0], cost, units), "int32")
        T.buffer_store(before, before[0] + cost * tirx.Cast("int64", units), [0])
        segments = settle(quotient(units, shape.items), "int32")
        with T.serial(first, last) as unit:
            item, number = T.bind(quotient(unit, segments)), T.bind(remainder(unit, segments))
            begin = T.bind(number * segment)
            compute(shape, given, tile, item, number, begin, tirx.min(begin + segment, blocks))

    for_each_tile(shape, given, rows, share)


def _started(cost_before: Expr, cost: Expr, units: Expr) -> Expr:
    """How many of a tile's units, each of `cost`, start less than `cost_before` after its start."""
    count = tirx.min(quotient(cost_before + cost - 1, cost), tirx.Cast("int64", units))
    return tirx.Cast("int32", tirx.max(count, T.int64(0)))


def for_each_tile(
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
