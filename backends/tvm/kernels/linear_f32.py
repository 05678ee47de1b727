"""y = epilogue(x · weightᵀ) in float32.

Packed weights are tiles of 16 output channels, [ceil(N/16), K, 16]: for each input channel k one
cache line. The same layout serves decode, where every weight is read once for all (few) rows and
memory is the limit, and prefill, a register-tiled matrix product.
"""

from __future__ import annotations

import numpy as np
from tvm.tirx.script import builder as T

from graphwright.backends.tvm.kernels.kernel import Expr, Kernel, define, registers
from graphwright.backends.tvm.kernels.loops import kernel_name, spread
from graphwright.backends.tvm.kernels.matmul import (
    TILE,
    Epilogue,
    Tiling,
    for_each_block,
    prefetch,
    stage,
    unrolled,
    write_block,
)
from graphwright.backends.tvm.kernels.vector import constant, fma, span
from graphwright.backends.tvm.target import Cpu

__all__ = ["linear_f32", "pack_f32"]

AHEAD = 64  # lines (input channels) that decode prefetches ahead: 4 KB
DECODE_ROWS = 8
TURN = 128  # input channels per turn: 8 KB of weights


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

    For `max_rows` <= 8 the kernel is the one for decoding: right for any number of rows, made for 1
    to 8. `residual_stride` None means no residual; `out` may be the residual itself if its stride
    is N.
    """
    epilogue = Epilogue(bias, activation, residual_stride)
    decode = max_rows <= DECODE_ROWS
    tiling = _tiling(cpu, decode)
    kind = "linear_f32_decode" if decode else "linear_f32_prefill"
    name = kernel_name(kind, cpu, n=n, k=k, x=x_stride, **epilogue.parameters)

    def body(thread: Expr, threads: Expr, rows: Expr, x: Expr, weight: Expr, *rest: Expr) -> None:
        sums = stage(tiling.stage_size)

        def value(at: Expr, row: Expr, tile: Expr, lane: Expr, lanes: int) -> Expr:
            return sums[span(at, lanes)]

        *operands, out = rest
        write = write_block(n, tiling, epilogue, cpu.lanes, value, operands, out)

        def compute(row_numbers: list[Expr], tiles: list[Expr]) -> None:
            offsets = [T.bind(row * x_stride) for row in row_numbers]
            bases = [T.bind(tile * (k * TILE)) for tile in tiles]
            _multiply(x, offsets, weight, bases, sums, k, cpu, AHEAD if decode else 0)

        for_each_block(n, tiling, thread, threads, rows, compute, write)

    pointers = [("x", "float32"), ("weight", "float32"), *epilogue.pointers, ("out", "float32")]
    return define(name, pointers, body)


def _tiling(cpu: Cpu, decode: bool) -> Tiling:
    if decode:
        return Tiling((DECODE_ROWS, 4, 2, 1), 1)
    return Tiling((8, 4, 2), 2) if cpu.lanes == 16 else Tiling((6, 3, 1), 1)


def _multiply(
    x: Expr,
    offsets: list[Expr],
    weight: Expr,
    bases: list[Expr],
    sums: Expr,
    k: int,
    cpu: Cpu,
    ahead: int,
) -> None:
    """sums[row][tile][channel] = Σ_k x[row][k] * weight[tile][k][channel].

    Rows that do not fit the registers together take turns of some input channels, so that the
    weights of a turn are still in the L1 cache for the next rows.
    """
    lanes, whole = cpu.lanes, span(0, cpu.lanes)
    vectors = [(base, part) for base in bases for part in range(0, TILE, lanes)]
    together = min(len(offsets), (12 if lanes == 8 else 28) // len(vectors))
    chains = max(1, 8 // (together * len(vectors)))

    def turn(rows: slice, first: Expr, count: int, resume: bool) -> None:
        ours = offsets[rows]
        staged = [
            span(i * lanes, lanes)
            for i in range(rows.start * len(vectors), rows.stop * len(vectors))
        ]
        total = [registers(len(staged), lanes) for _ in range(chains)]
        for chain, accumulators in enumerate(total):
            for accumulator, at in zip(accumulators, staged, strict=True):
                start = sums[at] if resume and chain == 0 else constant(0.0, lanes)
                T.buffer_store(accumulator, start, [whole])

        def step(i: Expr, u: int) -> None:
            line = (first + i) * TILE
            if ahead and rows.start == 0:
                for base in bases:
                    prefetch(weight, base + line + ahead * TILE)
            values = [T.bind(weight[span(base + line + part, lanes)]) for base, part in vectors]
            accumulators = iter(total[u % chains])
            for offset in ours:
                scalar = T.bind(spread(x[offset + (first + i)], lanes))
                for value in values:
                    accumulator = next(accumulators)
                    product = fma(value, scalar, accumulator[whole], lanes)
                    T.buffer_store(accumulator, product, [whole])

        unrolled(count, max(chains, 4), step)
        for at, *parts in zip(staged, *total, strict=True):
            T.buffer_store(sums, sum((p[whole] for p in parts[1:]), parts[0][whole]), [at])

    if together == len(offsets):
        turn(slice(0, together), 0, k, resume=False)
        return
    for i in range(len(offsets) * len(vectors)):
        T.buffer_store(sums, constant(0.0, lanes), [span(i * lanes, lanes)])
    for first, count, turns in ((0, TURN, k // TURN), (k // TURN * TURN, k % TURN, 1)):
        if count and turns:
            with T.serial(0, turns) as i:
                for row in range(0, len(offsets), together):
                    ours = slice(row, min(row + together, len(offsets)))
                    turn(ours, first + i * TURN, count, resume=True)
