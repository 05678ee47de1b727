"""y = epilogue((x_q · (weight_q - zero)ᵀ) * x_scale * weight_scale) for every weight scheme."""

from __future__ import annotations

from typing import TypeAlias

from graphwright.backends.tvm.kernels.blocks import Blocks, for_each_block
from graphwright.backends.tvm.kernels.kernel import Expr, Kernel, define
from graphwright.backends.tvm.kernels.linear_groups_amx import ProductGroupsAmx
from graphwright.backends.tvm.kernels.linear_w4 import ProductW4, w4_tilings
from graphwright.backends.tvm.kernels.linear_w8 import ProductW8, w8_tilings
from graphwright.backends.tvm.kernels.linear_w8_amx import ProductW8Amx
from graphwright.backends.tvm.kernels.loops import kernel_name
from graphwright.backends.tvm.kernels.matmul import (
    TILE,
    Epilogue,
    Tiling,
    Tilings,
    few_or_many,
    tilings_name,
    write_block,
)
from graphwright.backends.tvm.kernels.quantize_rows import padded
from graphwright.backends.tvm.target import Cpu
from graphwright.ir.schemes import Scheme

__all__ = ["linear_quantized", "product_of", "tile_bytes", "tilings_of", "weight_pointers"]

Product: TypeAlias = ProductW8 | ProductW4 | ProductGroupsAmx


def linear_quantized(
    n: int,
    k: int,
    scheme: Scheme,
    *,
    bias: bool = False,
    activation: str | None = None,
    residual_stride: int | None = None,
    max_rows: int,
    tilings: Tilings | None = None,
    cpu: Cpu,
) -> Kernel:
    """Pointers: x_q, x_scale, weight, weight_scale, (weight_zero), (bias [N]), (residual), out.

    x_q [rows, row_size(k, group)] and x_scale [rows, K/G or 1] come from quantize_rows, the
    weight's parts from pack_w8 or pack_w4; out is float32 [rows, N]. A call may have up to
    `max_rows` rows. `residual_stride` None means no residual; `out` may be the residual itself if
    its stride is N. `tilings`: other blocks than those of tilings_of.
    """
    epilogue = Epilogue(bias, activation, residual_stride)
    few, many, limit = tilings or tilings_of(cpu, scheme)
    only_few = limit if max_rows <= limit else None
    name = kernel_name(
        f"linear_{scheme}", cpu, n=n, k=k, rows=only_few, **epilogue.parameters,
        tiled=tilings_name(tilings, only_few is not None),
    )  # fmt: skip
    weights = weight_pointers(scheme)

    def body(thread: Expr, threads: Expr, rows: Expr, *buffers: Expr) -> None:
        x, x_scale, *rest, out = buffers
        parts, operands = rest[: len(weights)], rest[len(weights) :]

        def code(tiling: Tiling, many_rows: bool) -> Blocks:
            product = product_of(scheme, x, x_scale, parts, k, tiling, cpu, many_rows, threads)
            write = write_block(n, tiling, epilogue, cpu.lanes, product.value, operands, out)
            return Blocks(tiling, product.multiply, write, product.begin)

        def emit(tiling: Tiling, many_rows: bool) -> None:
            lone = tiling.alone(tile_bytes(k, scheme))
            alone = code(lone, many_rows) if lone else None
            for_each_block(n, thread, threads, rows, code(tiling, many_rows), alone)

        few_or_many(rows, limit, max_rows, lambda: emit(few, False), lambda: emit(many, True))

    pointers = [("x_q", "int8"), ("x_scale", "float32"), *weights, *epilogue.pointers]
    return define(name, [*pointers, ("out", "float32")], body)


def weight_pointers(scheme: Scheme) -> list[tuple[str, str]]:
    """The pointers, by name and dtype, of the parts of a weight."""
    if scheme.bits == 8:
        return [("weight", "int8"), ("weight_scale", "float32")]
    zero = [("weight_zero", "uint8")] * scheme.zero
    return [("weight", "uint8"), ("weight_scale", "float16"), *zero]


def tile_bytes(k: int, scheme: Scheme) -> int:
    """Bytes of the values of one tile of a packed weight."""
    return padded(k) * TILE * scheme.bits // 8


def tilings_of(cpu: Cpu, scheme: Scheme, gathered: bool = False) -> Tilings:
    """For few rows, where memory is the limit, for many, where arithmetic is; up to where few.

    gathered: a block's rows of activations are any, as those that an expert gets.
    """
    if scheme.bits == 8:
        return w8_tilings(cpu, scheme.group is not None, gathered)
    return w4_tilings(cpu, gathered)


def product_of(
    scheme: Scheme, x: Expr, x_scale: Expr, parts: list[Expr], k: int, tiling: Tiling, cpu: Cpu,
    many_rows: bool, threads: Expr,
) -> Product:  # fmt: skip
    """The inner loop over a weight of `scheme`, with its buffers on the stack."""
    if tiling.amx and scheme.group is not None:
        return ProductGroupsAmx.staged(scheme, x, x_scale, parts, k, tiling)
    if scheme.bits == 8:
        kind = ProductW8Amx if tiling.amx else ProductW8
        return kind.staged(x, x_scale, parts, k, scheme.group, tiling, cpu, many_rows)
    assert scheme.group is not None
    return ProductW4.staged(x, x_scale, parts, k, scheme.group, tiling, cpu, threads)
