"""gw.linear and gw.quantized_linear: products with their epilogues, split where rows are few."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from graphwright.backends.blobs import dense
from graphwright.backends.triton.context import LoweringContext, arguments
from graphwright.backends.triton.kernels.gemv import gemv, gemv_splits
from graphwright.backends.triton.kernels.kernel import RowCount, with_dtype
from graphwright.backends.triton.kernels.linear import combine_products, tiles_for
from graphwright.backends.triton.kernels.linear import linear as linear_kernel
from graphwright.backends.triton.kernels.quantize_rows import quantize_rows
from graphwright.backends.triton.kernels.weight_format import WeightFormat
from graphwright.backends.triton.launches import Launch, Operand
from graphwright.backends.triton.registry import lowering
from graphwright.backends.triton.weights import dense_as, nibbles, unsigned
from graphwright.ir.memory import buffer_name
from graphwright.ir.schemes import Scheme

__all__ = ["format_of", "linear", "one_vector_a_row", "quantized", "weights_of"]

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
    found = (add(given["weight"], nibbles(scheme)), add(given["scale"], dense_as("float16")))
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


@lowering(gw.linear.default, when=one_vector_a_row)
@lowering(gw.quantized_linear.default, when=one_vector_a_row)
def linear(context: LoweringContext, node: fx.Node) -> tuple[Launch, ...]:
    """Integer weights are multiplied with int8 activations where these are float32, as the op says,
    and with the activations themselves where those are narrow: that is nearer to the model.
    """
    given = arguments(node)
    outputs, inputs = (int(size) for size in given["weight"].meta["val"].shape)
    rows, dtype, format = context.rows(node), context.types.activations, format_of(context, given)
    (out,) = context.result_dtypes(node)
    integer = "scheme" in given and dtype == "float32"
    launches: tuple[Launch, ...] = ()
    stride = context.view(given["x"]).row_stride
    x: tuple[Operand, ...] = (context.value(given["x"]),)
    if integer:
        groups = int(given["scale"].meta["val"].shape[-1])
        values, scales, launches = quantized(context, node, given["x"], inputs, groups, rows)
        x, stride = (values, scales), inputs
    bias, residual = given["bias"], given["residual"]
    epilogue = {
        "bias": None if bias is None else "float32",
        "residual_stride": None if residual is None else context.view(residual).row_stride,
        "activation": given["activation"], "dtype": dtype, "rows": rows,
    }  # fmt: skip
    extra = [] if bias is None else [context.weight(bias)]
    if residual is not None:
        extra.append(context.value(residual))
    most = context.most(rows)
    if context.bucket(rows) == 1 and not integer:
        splits = gemv_splits(outputs, inputs, format)
        kernel = context.kernel(
            gemv, outputs, inputs, format, splits, bias=epilogue["bias"],
            residual=residual is not None, activation=given["activation"], dtype=dtype, rows=rows,
            most=most,
        )  # fmt: skip
    else:
        tiles = tiles_for(context.bucket(rows), outputs, inputs, format, dtype)
        splits = tiles.splits
        kernel = context.kernel(
            linear_kernel, outputs, inputs, format, tiles, x_stride=stride, integer=integer,
            most=most, **epilogue,
        )  # fmt: skip
    weights = weights_of(context, given)
    if splits == 1:
        operands = (BATCH, *x, *weights, *extra, *context.results(node))
        return (*launches, Launch(node.name, with_dtype(kernel, "out", out), operands))
    (partial,) = context.scratch(4 * splits * most * outputs)
    product = Launch(node.name, kernel, (BATCH, *x, *weights, partial))
    kernel = context.kernel(combine_products, outputs, splits, most=most, **epilogue)
    kernel = with_dtype(kernel, "out", out)
    combine = Launch(node.name, kernel, (BATCH, partial, *extra, *context.results(node)))
    return (*launches, product, combine)
