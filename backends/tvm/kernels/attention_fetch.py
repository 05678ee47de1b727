"""What attention asks memory for before it needs it: the keys and values that come next.

A core has a few dozen requests for lines at once, which is too few for the time that memory takes:
most of the lines must be asked for by the hardware, which follows accesses in the order of
addresses. So a tile of one token reads whole blocks, and asks for what comes `blocks_ahead` blocks
later (8 KB or more: soon enough, and too little to lose the hardware's track).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from tvm import tirx
from tvm.tirx.script import builder as T

from graphwright.backends.tvm.kernels.attention_work import Chunk, Pass
from graphwright.backends.tvm.kernels.kernel import Expr
from graphwright.backends.tvm.kernels.kv_values import BLOCK_SIZE, KvBlock
from graphwright.backends.tvm.kernels.loops import quotient, settle

__all__ = [
    "fetch_after_keys",
    "fetch_after_values",
    "fetch_keys",
    "fetch_scales",
    "fetch_values",
    "lines_of",
]

_Fetch: TypeAlias = Callable[[Pass, Expr, Expr, int], None]
LINE = 64  # bytes of a cache line


def lines_of(channels: int, block: KvBlock) -> int:
    """Cache lines of one head's keys, or values, in a block."""
    return -(-channels * BLOCK_SIZE * block.itemsize // LINE)


def fetch_keys(work: Pass, chunk: Chunk, b: Expr, part: Expr, parts: int) -> None:
    """Asks for part `part` of `parts` of this pass's share of the keys of the block that comes
    `CHUNK` blocks after block b."""
    _fetch_keys(work, chunk.ahead[b], part, parts)


def fetch_values(work: Pass, chunk: Chunk, b: Expr, part: Expr, parts: int) -> None:
    """The same of values."""
    _fetch_values(work, chunk.ahead[b], part, parts)


def fetch_after_keys(work: Pass, chunk: Chunk, b: Expr, part: Expr, parts: int) -> None:
    """The same of what is read `blocks_ahead` blocks after the keys of block b, where the keys of a
    chunk's blocks are followed by their values, and those by the keys of the next chunk."""
    _fetch_after(work, chunk, b, part, parts, (_fetch_keys, _fetch_values), chunk.starts)


def fetch_after_values(work: Pass, chunk: Chunk, b: Expr, part: Expr, parts: int) -> None:
    """The same of what is read after the values of block b."""
    _fetch_after(work, chunk, b, part, parts, (_fetch_values, _fetch_keys), chunk.ahead)


def _fetch_after(
    work: Pass, chunk: Chunk, b: Expr, part: Expr, parts: int,
    fetches: tuple[_Fetch, _Fetch], next_starts: Expr,
) -> None:  # fmt: skip
    """By the first of `fetches` in this chunk, by the second in the blocks that start at
    `next_starts`."""
    here, behind = fetches
    later = T.bind(b + work.unit.shape.blocks_ahead)
    with T.If(later < chunk.count):
        with T.Then():
            here(work, chunk.starts[later], part, parts)
        with T.Else():
            place = tirx.min(later - chunk.count, chunk.count - 1)
            behind(work, next_starts[place], part, parts)


def fetch_scales(work: Pass, chunk: Chunk, b: Expr) -> None:
    """Asks for the scales of the head in the block that comes `CHUNK` blocks after block b."""
    unit = work.unit
    start = settle(chunk.scales_ahead[b] + unit.scales_start, "int64")
    for buffer in (unit.given.k_scale, unit.given.v_scale):
        _ask(buffer, start)


def _fetch_keys(work: Pass, block_start: Expr, part: Expr, parts: int) -> None:
    unit = work.unit
    start = settle(block_start + unit.keys_start, "int64")
    _fetch(work, unit.given.k_cache, start, unit.shape.dim, part, parts)


def _fetch_values(work: Pass, block_start: Expr, part: Expr, parts: int) -> None:
    unit = work.unit
    start = settle(block_start + unit.values_start, "int64")
    _fetch(work, unit.given.v_cache, start, unit.shape.value_dim, part, parts)


def _fetch(work: Pass, buffer: Expr, start: Expr, channels: int, part: Expr, parts: int) -> None:
    block = work.unit.shape.block
    lines, shares = lines_of(channels, block), work.total * parts
    share = T.bind(work.number * parts + part)

    def ask(line: Expr) -> None:
        _ask(buffer, start + line * (LINE // block.itemsize))

    if lines % shares == 0:
        for number in range(lines // shares):
            ask(share * (lines // shares) + number)
        return
    with T.serial(quotient(share * lines, shares), quotient((share + 1) * lines, shares)) as i:
        ask(i)


def _ask(buffer: Expr, at: Expr) -> None:
    T.evaluate(
        T.call_llvm_intrin(
            "void", "llvm.prefetch.p0", T.address_of(buffer[at]), T.int32(0), T.int32(2),
            T.int32(1),
        )
    )  # fmt: skip
