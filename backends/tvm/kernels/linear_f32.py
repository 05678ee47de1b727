"""y = epilogue(x · weightᵀ) in float32.

Packed weights are tiles of 16 output channels, [ceil(N/16), K, 16]: for each input channel k one
cache line. The same layout serves decode, where every weight is read once for all (few) rows and
memory is the limit, and prefill, a register-tiled matrix product.
"""

from __future__ import annotations

import numpy as np
from tvm.tirx.script import builder as T

from graphwright.backends.tvm.kernels.kernel import Expr, Kernel, define
from graphwright.backends.tvm.kernels.loops import kernel_name, load, spread, store
from graphwright.backends.tvm.kernels.matmul import (
    TILE,
    Epilogue,
    Tiling,
    few_or_many,
    for_each_block,
    prefetch_ahead,
    stage,
    unrolled,
    write_block,
    zeros,
)
from graphwright.backends.tvm.kernels.vector import fma
from graphwright.backends.tvm.target import Cpu

__all__ = ["f32_tilings", "linear_f32", "multiply_f32", "pack_f32"]


def pack_f32(weight: np.ndarray) -> np.ndarray:
    """[N, K] -> float32 [ceil(N/16), K, 16], channels behind the last one zero."""
    n, k = weight.shape
    padded = np.zeros((-(-n // TILE) * TILE, k), np.float32)
    padded[:n] = weight
    return np.ascontiguousarray(padded.reshape(-1, TILE, k).transpose(0, 2, 1))


def linear_f32(
    n: int,
    k: int,
    *,
    x_stride: int,
    bias: bool = False,
    activation: str | None = None,
    residual_stride: int | None = None,
    max_rows: int,
    cpu: Cpu,
) -> Kernel:
    """Pointers: x [rows, K] with `x_stride`, weight (pack_f32), (bias), (residual), out [rows, N].

    A call may have up to `max_rows` rows. `residual_stride` None means no residual; `out` may be
    the residual itself if its stride is N.
    """
    assert x_stride >= k, f"rows of {k} elements cannot be {x_stride} apart"
    epilogue = Epilogue(bias, activation, residual_stride)
    few, many, limit = f32_tilings(cpu)
    only_few = limit if max_rows <= limit else None
    name = kernel_name(
        "linear_f32", cpu, n=n, k=k, x=x_stride, rows=only_few, **epilogue.parameters
    )

    def body(thread: Expr, threads: Expr, rows: Expr, x: Expr, weight: Expr, *rest: Expr) -> None:
        *operands, out = rest

        def emit(tiling: Tiling) -> None:
            sums = stage(tiling.stage_size)

            def value(at: Expr, row: Expr, tile: Expr, lane: Expr, lanes: int) -> Expr:
                return load(sums, at, lanes)

            def compute(row_numbers: list[Expr], tiles: list[Expr]) -> None:
                offsets = [T.bind(row * x_stride) for row in row_numbers]
                bases = [T.bind(tile * (k * TILE)) for tile in tiles]
                multiply_f32(x, offsets, weight, bases, sums, k, cpu)

            write = write_block(n, tiling, epilogue, cpu.lanes, value, operands, out)
            for_each_block(n, tiling, thread, threads, rows, compute, write)

        few_or_many(rows, limit, max_rows, lambda: emit(few), lambda: emit(many))

    pointers = [("x", "float32"), ("weight", "float32"), *epilogue.pointers, ("out", "float32")]
    return define(name, pointers, body)


def f32_tilings(cpu: Cpu) -> tuple[Tiling, Tiling, int]:
    """For few rows, where memory is the limit, for many, where arithmetic is, and up to where few.

    The blocks for many rows reach 0.9 of the peak on Zen 4; 12 or 14 rows by 2 tiles did no better.
    """
    if cpu.lanes == 16:
        return Tiling((8, 4, 2, 1), 1), Tiling((8, 4, 2), 2), 8
    return Tiling((4, 2, 1), 1), Tiling((6, 3, 1), 1), 4


def multiply_f32(
    x: Expr,
    offsets: list[Expr],
    weight: Expr,
    bases: list[Expr],
    sums: Expr,
    k: int,
    cpu: Cpu,
) -> None:
    """sums[row][tile][channel] = Σ_k x[row][k] * weight[tile][k][channel].

    Where there are few sums, several chains of additions hide the latency of one.
    """
    lanes = cpu.lanes
    vectors = [(base, part) for base in bases for part in range(0, TILE, lanes)]
    count = len(offsets) * len(vectors)
    chains = [zeros(count, lanes) for _ in range(max(1, 8 // count))]

    def step(i: Expr, u: int) -> None:
        prefetch_ahead(weight, bases, i, TILE, len(offsets))
        values = [T.bind(load(weight, base + i * TILE + part, lanes)) for base, part in vectors]
        left = iter(chains[u % len(chains)])
        for offset in offsets:
            scalar = T.bind(spread(x[offset + i], lanes))
            for each in values:
                register = next(left)
                store(register, 0, fma(each, scalar, load(register, 0, lanes), lanes), lanes)

    unrolled(k, max(len(chains), 4), step)
    for i, (first, *rest) in enumerate(zip(*chains, strict=True)):
        total = sum((load(register, 0, lanes) for register in rest), load(first, 0, lanes))
        store(sums, i * lanes, total, lanes)
