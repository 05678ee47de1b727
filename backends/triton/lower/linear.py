"""gw.linear and gw.quantized_linear: products with their epilogues, split where rows are few."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from graphwright.backends.blobs import dense
from graphwright.backends.triton.candidates import (
    pick_few_rows,
    pick_one_row,
    pick_splits,
    pick_tiles,
)
from graphwright.backends.triton.context import LoweringContext, arguments
from graphwright.backends.triton.cost import Product
from graphwright.backends.triton.dtypes import ITEM_SIZES
from graphwright.backends.triton.kernels.few_rows import MOST_ROWS, few_rows
from graphwright.backends.triton.kernels.gemv import gemv, gemv_scratch
from graphwright.backends.triton.kernels.kernel import RowCount, TritonKernel, with_dtype
from graphwright.backends.triton.kernels.linear import linear as linear_kernel
from graphwright.backends.triton.kernels.norms import norm as norm_kernel
from graphwright.backends.triton.kernels.one_row import one_row
from graphwright.backends.triton.kernels.quantize_rows import quantize_rows
from graphwright.backends.triton.kernels.shared_row import MOST_INPUTS
from graphwright.backends.triton.kernels.turned_heads import TurnedHeads
from graphwright.backends.triton.kernels.weight_format import WeightFormat
from graphwright.backends.triton.launches import Launch, Operand
from graphwright.backends.triton.registry import lowering
from graphwright.backends.triton.weights import dense_as, nibbles, unsigned
from graphwright.ir.memory import buffer_name
from graphwright.ir.schemes import Scheme

__all__ = [
    "Heads",
    "format_of",
    "linear",
    "one_vector_a_row",
    "product",
    "quantized",
    "weights_of",
]

gw = torch.ops.gw
BATCH = Operand("batch")


def one_vector_a_row(context: LoweringContext, node: fx.Node) -> str | None:
    """Refuses an input whose rows hold several vectors."""
    given = arguments(node)
    inputs = int(given["weight"].meta["val"].shape[1])
    found = context.view(given["x"]).row_size
    return (
        None if found == inputs else f"a row of '{given['x']}' has {found} elements, not {inputs}"
    )


def format_of(context: LoweringContext, given: dict[str, Any]) -> WeightFormat:
    """How the weight of a product lies in memory: floats as they are, but float32 ones in the type
    of the activations, with which tensor cores multiply them.
    """
    if "scheme" in given:
        return WeightFormat.of(given["scheme"])
    dtype = given["weight"].meta["val"].dtype
    narrow = dtype in (torch.bfloat16, torch.float16)
    name = str(dtype).removeprefix("torch.")
    return WeightFormat.dense(name if narrow else context.types.activations)


def weights_of(
    context: LoweringContext, given: dict[str, Any], share: float = 1.0
) -> tuple[Operand, ...]:
    """The weight, its scale and zero points, of which a token reads `share`."""

    def add(node: Any, layout: Any) -> Operand:
        size = layout.size(tuple(int(size) for size in node.meta["val"].shape))
        return context.weight(node, layout, read=int(size * share))

    if "scheme" not in given:
        return (add(given["weight"], dense_as(format_of(context, given).dtype)),)
    scheme = Scheme.parse(given["scheme"])
    if scheme.bits == 8:
        return (add(given["weight"], dense_as("int8")), add(given["scale"], dense()))
    layout = nibbles(scheme, experts=given["weight"].meta["val"].dim() == 3)
    found = (add(given["weight"], layout), add(given["scale"], dense_as("float16")))
    return found if given["zero"] is None else (*found, add(given["zero"], unsigned()))


def quantized(
    context: LoweringContext, node: fx.Node, x: Any, inputs: int, groups: int, rows: RowCount
) -> tuple[Operand, Operand, tuple[Launch, ...]]:
    """(x as int8, its scales, what computes both), once for all steps that read the same rows."""
    view = context.view(x)
    subrows = view.row_size // inputs
    name = f"{buffer_name(view.base)}[{view.offset}:+{view.row_size}].int8g{groups}"
    values, first = context.keep(name, context.most(rows) * view.row_size)
    scales, _ = context.keep(f"{name}.scale", 4 * context.most(rows) * subrows * groups)
    if not first:
        return values, scales, ()
    kernel = context.kernel(
        quantize_rows, inputs, x_stride=view.row_stride, groups=groups, subrows=subrows,
        dtype=context.dtype(x), rows=rows,
    )  # fmt: skip
    return values, scales, (Launch(node.name, kernel, (BATCH, context.value(x), values, scales)),)


@dataclass(frozen=True)
class Heads:
    """inputs: cos, sin and slots; caches: of keys and values."""

    turn: TurnedHeads
    inputs: tuple[Operand, ...]
    caches: tuple[Operand, ...]


@lowering(gw.linear.default, when=one_vector_a_row)
@lowering(gw.quantized_linear.default, when=one_vector_a_row)
def linear(context: LoweringContext, node: fx.Node) -> tuple[Launch, ...]:
    """Integer weights are multiplied with int8 activations where these are float32, as the op says,
    and with the activations themselves where those are narrow: that is nearer to the model.
    """
    if node in context.fusions.absorbed:
        return ()
    return product(context, node, node)


def product(
    context: LoweringContext, node: fx.Node, step: fx.Node, *, activation: str | None = None,
    gate: tuple[int, int] | None = None, heads: Heads | None = None,
) -> tuple[Launch, ...]:  # fmt: skip
    """The product `node` with the results of `step`: with a gate, the gated activation below it,
    with heads, the rotated queries."""
    given = arguments(node)
    outputs, inputs = (int(size) for size in given["weight"].meta["val"].shape)
    rows, dtype, format = context.rows(node), context.types.activations, format_of(context, given)
    (out,) = context.result_dtypes(step)
    integer = "scheme" in given and dtype == "float32"
    launches: tuple[Launch, ...] = ()
    options: dict[str, Any] = {
        "activation": activation or given["activation"], "gate": gate, "dtype": dtype,
        "turn": heads.turn if heads else None, "rows": rows,
    }  # fmt: skip
    source, extra = given["x"], []
    bucket = context.bucket(rows)
    alone = _alone(bucket, inputs)
    several = format.kind == "w4" and not integer and bucket <= MOST_ROWS and not alone
    norm = context.fusions.norm(source)
    if norm is not None:
        normed = arguments(norm)
        source, eps = normed["x"], float(normed["eps"])
        factor = context.weight(normed["weight"], dense_as(dtype))
    x: tuple[Operand, ...] = (context.value(source),)
    stride = context.view(source).row_stride
    if norm is not None and several:
        # each program would norm all rows again: they are normed once, in front
        x = context.scratch(ITEM_SIZES[dtype] * bucket * inputs)
        kernel = context.kernel(
            norm_kernel, "rms_norm", inputs, x_stride=stride, weight=dtype, eps=eps, dtype=dtype,
            rows=rows,
        )  # fmt: skip
        kernel = with_dtype(kernel, "x", context.dtype(source))
        launches = (Launch(step.name, kernel, (BATCH, context.value(source), factor, *x)),)
        stride = inputs
    elif norm is not None:
        options |= {"norm": dtype, "eps": eps}
        extra.append(factor)
    if integer:
        groups = int(given["scale"].meta["val"].shape[-1])
        values, scales, launches = quantized(context, node, source, inputs, groups, rows)
        x, stride = (values, scales), inputs
    if given["bias"] is not None:
        options["bias"] = "float32"
        extra.append(context.weight(given["bias"]))
    residual = given["residual"]
    if residual is not None:
        extra.append(context.value(residual))
    if heads is not None:
        extra += heads.inputs
    residual_stride = None if residual is None else context.view(residual).row_stride
    tiled = integer or (format.kind != "w4" and bucket > 1) or bucket > MOST_ROWS
    if format.kind == "w4" and alone:
        tiled = tiled or x[0].offset % 4 != 0  # one_row.py loads two inputs at once
    kernel, sizes = _kernel_of(
        context, Product(bucket, outputs, inputs, format, dtype), stride, residual_stride,
        tiled, integer, options,
    )  # fmt: skip
    if residual is not None:
        kernel = with_dtype(kernel, "residual", context.dtype(residual))
    if sizes[1]:
        extra += [*context.scratch(sizes[0]), context.counters(sizes[1])]
    results = (*context.results(step), *(heads.caches if heads else ()))
    operands = (BATCH, *x, *weights_of(context, given), *extra, *results)
    return (*launches, Launch(step.name, with_dtype(kernel, "out", out), operands))


def _alone(rows: int, inputs: int) -> bool:
    """Is one_row.py for so many rows of w4 weights' inputs?"""
    return rows == 1 and inputs <= MOST_INPUTS


def _kernel_of(
    context: LoweringContext, shape: Product, x_stride: int, residual_stride: int | None,
    tiled: bool, integer: bool, options: dict[str, Any],
) -> tuple[TritonKernel, tuple[int, int]]:  # fmt: skip
    """The kernel for so many rows, and the bytes of its `partial` and `counters`."""
    n, k, format = shape.n, shape.k, shape.format
    strides = {"x_stride": x_stride, "residual_stride": residual_stride}
    if tiled:
        tiles = pick_tiles(shape, context.chips, context.picks, integer=integer)
        sizes = tiles.scratch_bytes(shape.rows, n)
        kernel = context.kernel(
            linear_kernel, n, k, format, tiles, integer=integer, **strides, **options
        )
        return kernel, sizes
    has_residual = residual_stride is not None
    if format.kind == "w4" and _alone(shape.rows, k):
        one = pick_one_row(shape, context.chips, context.picks)
        kernel = context.kernel(one_row, n, k, format, one, residual=has_residual, **options)
        return kernel, (0, 0)
    if format.kind == "w4":
        few = pick_few_rows(shape, context.picks)
        return context.kernel(few_rows, n, k, format, few, shape.rows, **strides, **options), (0, 0)
    splits = pick_splits(shape, context.chips, context.picks)
    sizes = gemv_scratch(n, format, splits, shape.dtype)
    kernel = context.kernel(gemv, n, k, format, splits, residual=has_residual, **options)
    return kernel, sizes
