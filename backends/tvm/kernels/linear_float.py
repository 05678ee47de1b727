"""y = epilogue(x · weightᵀ) in float32, with weights stored as float32, bfloat16 or float16.

The packed weights (float_weights.py) serve decode, where every weight is read once for all (few)
rows and memory is the limit, and prefill, a register-tiled matrix product: converting takes ports
that the multiplications leave free.
"""

from __future__ import annotations

from tvm.tirx.script import builder as T

from graphwright.backends.tvm.kernels.blocks import Blocks, for_each_block
from graphwright.backends.tvm.kernels.float_weights import FLOAT32, FloatWeights
from graphwright.backends.tvm.kernels.kernel import Expr, Kernel, define
from graphwright.backends.tvm.kernels.loops import kernel_name, load, spread, store, unrolled
from graphwright.backends.tvm.kernels.matmul import (
    TILE,
    Epilogue,
    Tiling,
    Tilings,
    few_or_many,
    few_rows,
    lines_ahead,
    prefetch_ahead,
    tilings_name,
    write_block,
    zeros,
)
from graphwright.backends.tvm.kernels.stage import stage
from graphwright.backends.tvm.kernels.vector import fma
from graphwright.backends.tvm.target import Cpu

__all__ = ["float_tilings", "linear_float", "multiply_float"]


def linear_float(
    n: int,
    k: int,
    *,
    weights: FloatWeights = FLOAT32,
    x_stride: int,
    bias: bool = False,
    activation: str | None = None,
    residual_stride: int | None = None,
    max_rows: int,
    tilings: Tilings | None = None,
    cpu: Cpu,
) -> Kernel:
    """Pointers: x [rows, K] with `x_stride`, weight (pack_float), (bias), (residual), out.

    All but the weight are float32; out is [rows, N]. A call may have up to `max_rows` rows.
    `residual_stride` None means no residual; `out` may be the residual itself if its stride is N.
    `tilings`: other blocks than those of float_tilings.
    """
    assert x_stride >= k, f"rows of {k} elements cannot be {x_stride} apart"
    epilogue = Epilogue(bias, activation, residual_stride)
    few, many, limit = tilings or float_tilings(cpu, weights)
    only_few = limit if max_rows <= limit else None
    name = kernel_name(
        f"linear_{weights.name}", cpu, n=n, k=k, x=x_stride, rows=only_few, **epilogue.parameters,
        tiled=tilings_name(tilings, only_few is not None),
    )  # fmt: skip

    def body(thread: Expr, threads: Expr, rows: Expr, x: Expr, weight: Expr, *rest: Expr) -> None:
        *operands, out = rest

        def code(tiling: Tiling) -> Blocks:
            sums = stage(tiling.stage_size)

            def value(at: Expr, row: Expr, tile: Expr, lane: Expr, lanes: int) -> Expr:
                return load(sums, at, lanes)

            def compute(row_numbers: list[Expr], tiles: list[Expr]) -> None:
                offsets = [T.bind(row * x_stride) for row in row_numbers]
                multiply_float(x, offsets, weight, tiles, sums, k, weights, cpu, tiling.ahead)

            write = write_block(n, tiling, epilogue, cpu.lanes, value, operands, out)
            return Blocks(tiling, compute, write)

        def emit(tiling: Tiling) -> None:
            lone = tiling.alone(weights.tile_bytes(k))
            alone = code(lone) if lone else None
            for_each_block(n, thread, threads, rows, code(tiling), alone)

        few_or_many(rows, limit, max_rows, lambda: emit(few), lambda: emit(many))

    pointers = [
        ("x", "float32"),
        ("weight", weights.storage),
        *epilogue.pointers,
        ("out", "float32"),
    ]
    return define(name, pointers, body)


def float_tilings(cpu: Cpu, weights: FloatWeights) -> Tilings:
    """For few rows, where memory is the limit, for many, where arithmetic is, and up to where few.

    The blocks for many rows reach 0.9 of the peak on Zen 4; 12 or 14 rows by 2 tiles did no better.
    With 16 registers, bfloat16 needs those of one row for its pairs: with six rows the inner loop
    keeps sums in memory, and reached half of the peak's share that float32 does.
    """
    if cpu.lanes == 16:
        return few_rows(cpu), Tiling((8, 4, 2), 2), 8
    return Tiling((4, 2, 1), 1, abreast=4), Tiling((5 if weights.paired else 6, 3, 1), 1), 4


def multiply_float(
    x: Expr,
    offsets: list[Expr],
    weight: Expr,
    tiles: list[Expr],
    sums: Expr,
    k: int,
    weights: FloatWeights,
    cpu: Cpu,
    ahead: bool,
) -> None:
    """sums[row][tile][channel] = Σ_k x[row][k] * weight[tile][k][channel].

    Where there are few sums, several chains of additions hide the latency of one.
    """
    lanes, depth = cpu.lanes, weights.depth
    bases = [T.bind(tile * weights.tile_size(k)) for tile in tiles]
    parts = [(base, part) for base in bases for part in range(0, TILE, lanes)]
    count = len(offsets) * len(parts)
    chains = [zeros(count, lanes) for _ in range(max(1, 8 // count))]

    def multiply(line: Expr, number: int, filled: int) -> None:
        """Adds the products of the `filled` input channels of a line, one of `number` unrolled."""
        vectors = [
            weights.vectors(weight, base + line * weights.line, part, lanes, filled)
            for base, part in parts
        ]
        for i in range(filled):
            left = iter(chains[(number * depth + i) % len(chains)])
            for offset in offsets:
                scalar = T.bind(spread(x[offset + (line * depth + i)], lanes))
                for vector in vectors:
                    register = next(left)
                    sum_ = fma(vector[i], scalar, load(register, 0, lanes), lanes)
                    store(register, 0, sum_, lanes)

    def step(line: Expr, number: int) -> None:
        if ahead:
            lines = lines_ahead(len(offsets), len(tiles), cpu)
            prefetch_ahead(weight, bases, line, weights.line, lines)
        multiply(line, number, depth)

    unrolled(k // depth, max(len(chains), 4) // depth, step)
    if k % depth:
        multiply(k // depth, 0, k % depth)
    for i, (first, *rest) in enumerate(zip(*chains, strict=True)):
        total = sum((load(register, 0, lanes) for register in rest), load(first, 0, lanes))
        store(sums, i * lanes, total, lanes)
