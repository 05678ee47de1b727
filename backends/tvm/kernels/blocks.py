"""Which thread computes which blocks of a matrix product, and in which order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tvm import tirx
from tvm.tirx.script import builder as T

from graphwright.backends.tvm.kernels.kernel import Expr, partition
from graphwright.backends.tvm.kernels.loops import settle
from graphwright.backends.tvm.kernels.matmul import TILE, Tiling

__all__ = ["Blocks", "block_count", "for_each_block", "panel_count", "share_of_blocks"]


@dataclass(frozen=True)
class Blocks:
    """The code of the blocks of a tiling: compute(rows, tiles), then write(first row, how many,
    first tile), and begin(tiles) before all blocks of the same tiles."""

    tiling: Tiling
    compute: Callable[[list[Expr], list[Expr]], None]
    write: Callable[[Expr, Expr, Expr], None]
    begin: Callable[[list[Expr]], None] | None = None


def for_each_block(
    n: int, thread: Expr, threads: Expr, rows: Expr, code: Blocks, alone: Blocks | None = None
) -> None:
    """Emits this thread's share of the blocks of `code`; `alone`: those of a row that comes alone.

    Row numbers are as many as one of tiling.rows; tile numbers are int64, as offsets into weights
    may need it. Those behind the end of the matrix repeat the last one, are computed and never
    written.

    Threads divide (tiles x blocks of rows) evenly, in the order of the tiles, so that each reads
    one contiguous part of the weights, once, and keeps it in its cache for all rows.
    """
    blocks = T.bind(block_count(rows, code.tiling))
    count = panel_count(n, code.tiling) * blocks
    if alone is None:
        first, last = partition(count, thread, threads)
    else:  # a lone row's shares are of whole strips
        unit = T.bind(T.Select(rows == 1, T.int32(alone.tiling.tiles), T.int32(1)))
        strips = T.bind(T.truncdiv(count + unit - 1, unit))
        first, last = (
            T.bind(tirx.min(each * unit, count)) for each in partition(strips, thread, threads)
        )
    share_of_blocks(n, rows, blocks, first, last, code, alone)


def panel_count(n: int, tiling: Tiling) -> int:
    """How many times `tiling.tiles` tiles it takes to cover N channels."""
    return -(-n // (tiling.tiles * TILE))


def block_count(rows: Expr, tiling: Tiling) -> Expr:
    """How many blocks it takes to cover `rows` rows."""
    return T.truncdiv(rows + (tiling.rows[0] - 1), tiling.rows[0])


def share_of_blocks(
    n: int,
    rows: Expr,
    blocks: Expr,
    first: Expr,
    last: Expr,
    code: Blocks,
    alone: Blocks | None = None,
) -> None:
    """The blocks [first, last) of panels x `blocks` of for_each_block.

    `blocks` is block_count(rows, code.tiling); they are counted along the rows first.
    """
    if alone is not None:
        assert code.tiling.tiles == 1, f"{code.tiling.tiles} tiles are no share to cut into strips"
        first = _strips(rows, first, last, alone)
    tiling, tile_count, most = code.tiling, -(-n // TILE), code.tiling.rows[0]
    panel_first = T.bind(T.truncdiv(first, blocks))
    panel_last = T.bind(T.truncdiv(last + blocks - 1, blocks))

    with T.serial(panel_first, panel_last) as panel:
        tiles = [
            T.bind(tirx.Cast("int64", tirx.min(panel * tiling.tiles + i, tile_count - 1)))
            for i in range(tiling.tiles)
        ]
        if code.begin is not None:
            code.begin(tiles)
        start = T.bind(tirx.max(first - panel * blocks, 0))
        stop = T.bind(tirx.min(last - panel * blocks, blocks))
        with T.serial(start, stop) as block:
            first_row = T.bind(block * most)
            left = T.bind(rows - first_row)
            _choose(
                tiling.rows,
                left,
                lambda count: code.compute(
                    [T.bind(tirx.min(first_row + i, rows - 1)) for i in range(count)], tiles
                ),
            )
            code.write(first_row, tirx.min(left, most), panel * tiling.tiles)


def _strips(rows: Expr, first: Expr, last: Expr, alone: Blocks) -> Expr:
    """What of tiles [first, last) a row that comes alone does side by side; the first tile left.

    Zen 3 with two threads and weights in huge pages, in shares of a read-only loop in the same run,
    with four tiles abreast and with one and prefetches: w8 0.83 and 0.70, bf16 and f16 0.90 and
    0.75; in pages of 4 KB, as files are mapped, it is a few hundredths. Prefetches beside four
    streams of the hardware's own are slower, those of other pages or of the next strip too. What
    does not divide goes tile by tile.

    Four tiles share each broadcast activation: from the cache `w4` is 1.5 times as fast as one tile
    with its prefetches (28 and 18 GB/s a thread).
    """
    abreast = alone.tiling.tiles
    strips = settle(T.truncdiv(last - first, abreast) * tirx.Cast("int32", rows == 1), "int32")
    with T.serial(0, strips) as strip:
        tile = T.bind(first + strip * abreast)
        tiles = [T.bind(tirx.Cast("int64", tile + i)) for i in range(abreast)]
        if alone.begin is not None:
            alone.begin(tiles)
        alone.compute([T.bind(T.int32(0))], tiles)
        alone.write(T.int32(0), T.int32(1), tile)
    return T.bind(first + strips * abreast)


def _choose(counts: tuple[int, ...], left: Expr, emit: Callable[[int], None]) -> None:
    """emit(the smallest of the descending `counts` that is >= left), the largest if none is."""
    count, *smaller = counts
    if not smaller:
        emit(count)
        return
    with T.If(left > smaller[0]):
        with T.Then():
            emit(count)
        with T.Else():
            _choose(tuple(smaller), left, emit)
