"""y[pair] = x_q · weight_q[expert]ᵀ * x_scale * weight_scale[expert] + bias[expert] in int8.

Packed weights and scales are those of linear_w8, expert after expert.
"""

from __future__ import annotations

import numpy as np
from tvm.tirx.script import builder as T

from graphwright.backends.tvm.kernels.int8_dot import Dot, dot_for
from graphwright.backends.tvm.kernels.kernel import Expr, Kernel, define
from graphwright.backends.tvm.kernels.linear_w8 import ProductW8, pack_w8, w8_tilings
from graphwright.backends.tvm.kernels.loops import kernel_name, quotient
from graphwright.backends.tvm.kernels.matmul import Tiling, few_or_many
from graphwright.backends.tvm.kernels.routed_blocks import (
    for_each_routed_block,
    pairs_of_an_expert,
)
from graphwright.backends.tvm.kernels.routed_groups import Runs
from graphwright.backends.tvm.target import Cpu

__all__ = ["pack_routed_w8", "routed_linear_w8"]


def pack_routed_w8(q: np.ndarray, scale: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """int8 [E, N, K] and float32 [E, N, K/G or 1] -> the blobs of weights and scales.

    Weights: int8 [E, ceil(N/16), K'/4, 16, 4]. Scales: float32 [E, ceil(N/16), K/G or 1, 16].
    """
    packed = [pack_w8(*each) for each in zip(q, scale, strict=True)]
    return np.stack([weight for weight, _ in packed]), np.stack([scales for _, scales in packed])


def routed_linear_w8(
    n: int,
    k: int,
    *,
    slots: int,
    shared: bool,
    group: int | None = None,
    bias: bool = False,
    max_rows: int,
    cpu: Cpu,
) -> Kernel:
    """Pointers: groups (routed_groups), x_q, x_scale, weight, weight_scale, (bias [E, N]), out.

    x_q and x_scale come from quantize_rows: a row for each token if `shared` by the slots, else for
    each (token, slot) pair; weight and weight_scale from pack_routed_w8; out is float32 [rows,
    slots, N]. A call may have up to `max_rows` rows.
    """
    few, many, limit = w8_tilings(cpu, group is not None)
    only_few = limit if max_rows <= limit else None

    def body(thread: Expr, threads: Expr, rows: Expr, groups: Expr, *buffers: Expr) -> None:
        x, x_scale, weight, weight_scale, *biases, out = buffers
        runs = Runs(groups, T.bind(rows * slots))

        def row_of(pair: Expr) -> Expr:
            return T.bind(quotient(pair, slots)) if shared else pair

        def emit(tiling: Tiling, dot: Dot) -> None:
            product = ProductW8.staged(x, x_scale, weight, weight_scale, k, group, dot, tiling)

            def compute(pairs: list[Expr], tiles: list[Expr]) -> None:
                product.multiply([row_of(pair) for pair in pairs], tiles)

            def value(at: Expr, pair: Expr, tile: Expr, lane: Expr, lanes: int) -> Expr:
                return product.value(at, row_of(pair), tile, lane, lanes)

            for_each_routed_block(
                n, tiling, cpu.lanes, thread, threads, runs, compute, value,
                biases[0] if bias else None, out,
                product.begin if dot.starts_from_channels else None,
            )  # fmt: skip

        few_or_many(
            pairs_of_an_expert(runs),
            limit,
            max_rows,
            lambda: emit(few, dot_for(cpu, many_rows=False)),
            lambda: emit(many, dot_for(cpu, many_rows=True)),
        )

    name = kernel_name(
        "routed_linear_w8", cpu, n=n, k=k, s=slots, shared=shared, g=group, rows=only_few,
        bias=bias,
    )  # fmt: skip
    pointers = [
        ("groups", "int32"),
        ("x_q", "int8"),
        ("x_scale", "float32"),
        ("weight", "int8"),
        ("weight_scale", "float32"),
        *[("bias", "float32")] * bias,
        ("out", "float32"),
    ]
    return define(name, pointers, body)
