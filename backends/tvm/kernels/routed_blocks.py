"""What routed products have around their inner loop: which thread computes what, for which expert.

The output rows are (token, slot) pairs; the pairs of an expert are multiplied with its weights in
the blocks of matmul.py. Packed weights are those of a plain product, expert after expert, so that a
tile of an expert has a number among the tiles of all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.tirx.script import builder as T

from graphwright.backends.tvm.kernels.blocks import (
    Blocks,
    block_count,
    panel_count,
    share_of_blocks,
)
from graphwright.backends.tvm.kernels.kernel import Expr, partition, registers
from graphwright.backends.tvm.kernels.loops import (
    load,
    quotient,
    row_chunks,
    settle,
    store,
    vector_loop,
)
from graphwright.backends.tvm.kernels.matmul import (
    TILE,
    Epilogue,
    Tiling,
    write_block,
)
from graphwright.backends.tvm.kernels.routed_groups import Runs
from graphwright.backends.tvm.kernels.vector import constant

__all__ = [
    "Residual", "RoutedBlocks", "fill_pairs_without_expert", "for_each_routed_block",
    "pairs_of_an_expert",
]  # fmt: skip


def pairs_of_an_expert(runs: Runs, optional: bool = False) -> Expr:
    """The mean over the experts that have any, rounded down. optional: may pairs have none?"""
    pairs = runs.end if optional else runs.pairs
    return settle(quotient(pairs, tirx.max(runs.count, 1)), "int32")


@dataclass(frozen=True)
class Residual:
    """What is added to the rows of pairs: that of `pair` begins at place(pair)."""

    values: Expr
    place: Callable[[Expr], Expr]


def fill_pairs_without_expert(
    n: int, lanes: int, thread: Expr, threads: Expr, runs: Runs, residual: Residual | None,
    out: Expr,
) -> None:  # fmt: skip
    """Emits this thread's share of the pairs behind the last run: their residual, or zeros."""
    first = runs.end

    def fill(row: Expr, column: Expr, columns: int) -> None:
        pair = runs.pair(first + row)
        begin = T.bind(tirx.Cast("int64", pair) * n + column)
        source = None if residual is None else T.bind(residual.place(pair) + column)

        def piece(at: Expr, width: int) -> None:
            value = constant(0.0, width)
            if residual is not None:
                value = load(residual.values, source + at, width)
            store(out, begin + at, value, width)

        vector_loop(columns, lanes, piece)

    row_chunks(settle(runs.pairs - first, "int32"), n, lanes, thread, threads, fill)


@dataclass(frozen=True)
class RoutedBlocks:
    """The code of the blocks of a tiling: compute(pairs, tiles), with tiles numbered among those
    of all experts, and value(…) of a staged block as write_block calls it."""

    tiling: Tiling
    compute: Callable[[list[Expr], list[Expr]], None]
    value: Callable[[Expr, Expr, Expr, Expr, int], Expr]
    begin: Callable[[list[Expr]], None] | None = None


def for_each_routed_block(
    n: int,
    lanes: int,
    thread: Expr,
    threads: Expr,
    runs: Runs,
    code: RoutedBlocks,
    alone: RoutedBlocks | None,
    bias: Expr | None,
    out: Expr,
    residual: Residual | None = None,
) -> None:
    """Emits this thread's share: out[pair] = value(…) + bias[expert] + residual of all pairs.

    As for_each_block, with pairs for rows. Threads divide (runs x tiles x blocks of pairs) evenly,
    in the order of the weights.
    """
    tiling = code.tiling
    tiles, panels = -(-n // TILE), panel_count(n, tiling)
    done = registers(1, 1, "int32")[0]  # blocks of the runs so far
    total = _total_blocks(runs, tiling, done)
    first, last = (settle(each, "int32") for each in partition(total * panels, thread, threads))
    T.buffer_store(done, T.int32(0), [0])
    with T.serial(0, settle(runs.count, "int32")) as run:
        start = runs.start(run)
        rows = settle(runs.start(run + 1) - start, "int32")
        blocks = settle(block_count(rows, tiling), "int32")
        before = settle(done[0], "int32")
        T.buffer_store(done, before + blocks * panels, [0])
        begins, ends = (
            settle(tirx.min(tirx.max(each - before, 0), blocks * panels), "int32")
            for each in (first, last)
        )
        with T.If(begins < ends), T.Then():
            first_tile = settle(tirx.Cast("int64", runs.expert(run)) * tiles, "int64")

            def of_expert(
                code: RoutedBlocks, run: Expr = run, start: Expr = start, base: Expr = first_tile
            ) -> Blocks:
                """`code` with rows and tiles numbered among those of one expert."""

                def pairs(numbers: list[Expr]) -> list[Expr]:
                    return [runs.pair(start + number) for number in numbers]

                def of_all(numbers: list[Expr]) -> list[Expr]:
                    return [T.bind(number + base) for number in numbers]

                def finished(at: Expr, pair: Expr, tile: Expr, lane: Expr, width: int) -> Any:
                    result = code.value(at, pair, tile + base, lane, width)
                    if residual is not None:
                        place = residual.place(pair) + tile * TILE + lane
                        result = result + load(residual.values, place, width)
                    if bias is None:
                        return result
                    expert = settle(tirx.Cast("int64", runs.expert(run)) * n, "int64")
                    return result + load(bias, expert + tile * TILE + lane, width)

                begin = code.begin
                return Blocks(
                    code.tiling,
                    lambda numbers, some: code.compute(pairs(numbers), of_all(some)),
                    write_block(
                        n, code.tiling, Epilogue(), lanes, finished, [], out,
                        place=lambda number: pairs([number])[0],
                    ),
                    None if begin is None else lambda some: begin(of_all(some)),
                )  # fmt: skip

            share_of_blocks(
                n, rows, blocks, begins, ends, of_expert(code), of_expert(alone) if alone else None
            )


def _total_blocks(runs: Runs, tiling: Tiling, total: Expr) -> Expr:
    T.buffer_store(total, T.int32(0), [0])
    with T.serial(0, settle(runs.count, "int32")) as run:
        rows = settle(runs.start(run + 1) - runs.start(run), "int32")
        T.buffer_store(total, total[0] + block_count(rows, tiling), [0])
    return settle(total[0], "int32")
