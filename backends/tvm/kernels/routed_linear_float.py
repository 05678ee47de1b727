"""y[pair] = x · weight[expert of pair]ᵀ + bias[expert of pair] in float32.

Packed weights are those of linear_float, expert after expert.
"""

from __future__ import annotations

from tvm import tirx
from tvm.tirx.script import builder as T

from graphwright.backends.tvm.kernels.float_weights import FLOAT32, FloatWeights
from graphwright.backends.tvm.kernels.kernel import Expr, Kernel, define
from graphwright.backends.tvm.kernels.linear_float import float_tilings, multiply_float
from graphwright.backends.tvm.kernels.loops import kernel_name, load, quotient, vector_start
from graphwright.backends.tvm.kernels.matmul import (
    Tiling,
    Tilings,
    few_or_many,
    tilings_name,
)
from graphwright.backends.tvm.kernels.routed_blocks import (
    Residual,
    RoutedBlocks,
    fill_pairs_without_expert,
    for_each_routed_block,
    pairs_of_an_expert,
)
from graphwright.backends.tvm.kernels.routed_groups import Runs
from graphwright.backends.tvm.kernels.stage import stage
from graphwright.backends.tvm.target import Cpu

__all__ = ["routed_linear_float"]


def routed_linear_float(
    n: int,
    k: int,
    *,
    weights: FloatWeights = FLOAT32,
    slots: int,
    shared: bool,
    x_stride: int,
    bias: bool = False,
    residual: int | None = None,
    adds: bool = False,
    optional: bool = False,
    max_rows: int,
    tilings: Tilings | None = None,
    cpu: Cpu,
) -> Kernel:
    """Pointers: groups (routed_groups), x, weight (pack_routed_float), (bias [E, N]), (residual),
    out.

    x is float32 [rows, K] if `shared` by the slots, else [rows, slots, K], with `x_stride` between
    rows; out is [rows, slots, N]. A call may have up to `max_rows` rows.
    residual: the distance of its rows of [slots, N]. adds: out is its own residual. optional: pairs
    may have no expert; their rows become the residual, or zero. `tilings`: other blocks than those
    of float_tilings.
    """
    assert residual is None or not adds
    few, many, limit = tilings or float_tilings(cpu, weights)
    only_few = limit if max_rows <= limit else None

    def body(
        thread: Expr, threads: Expr, rows: Expr, groups: Expr, x: Expr, weight: Expr, *rest: Expr
    ) -> None:
        *more, out = rest
        added = Residual(out, lambda pair: tirx.Cast("int64", pair) * n) if adds else None
        if residual is not None:
            added = Residual(more[-1], lambda pair: vector_start(pair, n, residual, slots))
        runs = Runs(groups, T.bind(rows * slots))

        def offset(pair: Expr) -> Expr:
            if shared:
                return quotient(pair, slots) * x_stride
            return vector_start(pair, k, x_stride, slots)

        def code(tiling: Tiling) -> RoutedBlocks:
            sums = stage(tiling.stage_size)

            def value(at: Expr, pair: Expr, tile: Expr, lane: Expr, lanes: int) -> Expr:
                return load(sums, at, lanes)

            def compute(pairs: list[Expr], tiles: list[Expr]) -> None:
                offsets = [T.bind(offset(pair)) for pair in pairs]
                multiply_float(x, offsets, weight, tiles, sums, k, weights, cpu, tiling.ahead)

            return RoutedBlocks(tiling, compute, value)

        def emit(tiling: Tiling) -> None:
            lone = tiling.alone(weights.tile_bytes(k))
            for_each_routed_block(
                n, cpu.lanes, thread, threads, runs, code(tiling),
                code(lone) if lone else None, more[0] if bias else None, out, added,
            )  # fmt: skip

        if optional and not adds:
            fill_pairs_without_expert(n, cpu.lanes, thread, threads, runs, added, out)
        mean = pairs_of_an_expert(runs, optional)
        few_or_many(mean, limit, max_rows, lambda: emit(few), lambda: emit(many))

    name = kernel_name(
        f"routed_linear_{weights.name}", cpu, n=n, k=k, s=slots, shared=shared, x=x_stride,
        rows=only_few, bias=bias, residual=residual, adds=adds, optional=optional,
        tiled=tilings_name(tilings, only_few is not None),
    )  # fmt: skip
    pointers = [
        ("groups", "int32"),
        ("x", "float32"),
        ("weight", weights.storage),
        *[("bias", "float32")] * bias,
        *[("residual", "float32")] * (residual is not None),
        ("out", "float32"),
    ]
    return define(name, pointers, body)
