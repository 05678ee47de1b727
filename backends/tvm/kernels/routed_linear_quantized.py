"""y[pair] = (x_q · (weight_q - zero)[expert]ᵀ) * x_scale * weight_scale[expert] + bias[expert].

The parts of a weight are those of linear_quantized, expert after expert.
"""

from __future__ import annotations

from tvm.tirx.script import builder as T

from graphwright.backends.tvm.kernels.kernel import Expr, Kernel, define
from graphwright.backends.tvm.kernels.linear_quantized import (
    product_of,
    tile_bytes,
    tilings_of,
    weight_pointers,
)
from graphwright.backends.tvm.kernels.loops import kernel_name, quotient
from graphwright.backends.tvm.kernels.matmul import Tiling, Tilings, few_or_many, tilings_name
from graphwright.backends.tvm.kernels.routed_blocks import (
    RoutedBlocks,
    for_each_routed_block,
    pairs_of_an_expert,
)
from graphwright.backends.tvm.kernels.routed_groups import Runs
from graphwright.backends.tvm.target import Cpu
from graphwright.ir.schemes import Scheme

__all__ = ["routed_linear_quantized"]


def routed_linear_quantized(
    n: int,
    k: int,
    scheme: Scheme,
    *,
    slots: int,
    shared: bool,
    bias: bool = False,
    max_rows: int,
    tilings: Tilings | None = None,
    cpu: Cpu,
) -> Kernel:
    """Pointers: groups (routed_groups), x_q, x_scale, weight, weight_scale, (weight_zero), (bias
    [E, N]), out.

    x_q and x_scale come from quantize_rows: a row for each token if `shared` by the slots, else for
    each (token, slot) pair; the weight's parts are packed expert by expert; out is float32 [rows,
    slots, N]. A call may have up to `max_rows` rows. `tilings`: other blocks than those of
    tilings_of.
    """
    few, many, limit = tilings or tilings_of(cpu, scheme, gathered=True)
    weights = weight_pointers(scheme)
    only_few = limit if max_rows <= limit else None

    def body(thread: Expr, threads: Expr, rows: Expr, groups: Expr, *buffers: Expr) -> None:
        x, x_scale, *rest, out = buffers
        parts, biases = rest[: len(weights)], rest[len(weights) :]
        runs = Runs(groups, T.bind(rows * slots))

        def row_of(pair: Expr) -> Expr:
            return T.bind(quotient(pair, slots)) if shared else pair

        def code(tiling: Tiling, many_rows: bool) -> RoutedBlocks:
            product = product_of(scheme, x, x_scale, parts, k, tiling, cpu, many_rows, threads)

            def compute(pairs: list[Expr], tiles: list[Expr]) -> None:
                product.multiply([row_of(pair) for pair in pairs], tiles)

            def value(at: Expr, pair: Expr, tile: Expr, lane: Expr, lanes: int) -> Expr:
                return product.value(at, row_of(pair), tile, lane, lanes)

            return RoutedBlocks(tiling, compute, value, product.begin)

        def emit(tiling: Tiling, many_rows: bool) -> None:
            lone = tiling.alone(tile_bytes(k, scheme))
            for_each_routed_block(
                n, cpu.lanes, thread, threads, runs, code(tiling, many_rows),
                code(lone, many_rows) if lone else None,
                biases[0] if bias else None, out,
            )  # fmt: skip

        few_or_many(
            pairs_of_an_expert(runs),
            limit,
            max_rows,
            lambda: emit(few, False),
            lambda: emit(many, True),
        )

    name = kernel_name(
        f"routed_linear_{scheme}", cpu, n=n, k=k, s=slots, shared=shared, rows=only_few, bias=bias,
        tiled=tilings_name(tilings, only_few is not None),
    )  # fmt: skip
    pointers = [
        ("groups", "int32"),
        ("x_q", "int8"),
        ("x_scale", "float32"),
        *weights,
        *[("bias", "float32")] * bias,
        ("out", "float32"),
    ]
    return define(name, pointers, body)
