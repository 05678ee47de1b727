"""Mixtures of experts: gw.top_k, gw.routed_linear, gw.quantized_routed_linear, gw.weighted_sum."""

from __future__ import annotations

import torch
from torch import fx

from graphwright.backends.blobs import dense
from graphwright.backends.rows import experts_of_rows
from graphwright.backends.triton.context import LoweringContext, arguments
from graphwright.backends.triton.kernels.kernel import with_dtype
from graphwright.backends.triton.kernels.routed_groups import routed_groups
from graphwright.backends.triton.kernels.routed_linear import routed_linear as routed_linear_kernel
from graphwright.backends.triton.kernels.routed_linear import routed_tiles
from graphwright.backends.triton.kernels.top_k import top_k as top_k_kernel
from graphwright.backends.triton.kernels.weighted_sum import weighted_sum as weighted_sum_kernel
from graphwright.backends.triton.launches import Launch, Operand
from graphwright.backends.triton.lower.linear import format_of, quantized, weights_of
from graphwright.backends.triton.registry import lowering
from graphwright.ir.memory import buffer_name, in_place

__all__ = ["routed_linear", "top_k", "weighted_sum"]

gw = torch.ops.gw
BATCH = Operand("batch")


def _refusal(context: LoweringContext, node: fx.Node) -> str | None:
    """What experts_of_rows refuses, and what is only made for adapters: one slot, no bias."""
    given = arguments(node)
    if given.get("residual") is not None and context.view(given["experts"]).row_size != 1:
        return f"it adds '{given['residual']}' to several slots of a token"
    if given.get("optional") and given["bias"] is not None:
        return f"it adds the bias '{given['bias']}' where there may be no expert"
    return experts_of_rows(context, node)


@lowering(gw.routed_linear.default, when=_refusal)
@lowering(gw.quantized_routed_linear.default, when=experts_of_rows)
def routed_linear(context: LoweringContext, node: fx.Node) -> tuple[Launch, ...]:
    """The pairs of tokens and slots are sorted once for all products with the same routing."""
    given = arguments(node)
    experts, outputs, inputs = (int(size) for size in given["weight"].meta["val"].shape)
    optional, residual = bool(given.get("optional")), given.get("residual")
    kinds = experts + optional  # none is one more
    visited = experts if in_place(node) is not None else kinds  # nothing is added for none
    ids, x = context.view(given["experts"]), context.view(given["x"])
    slots, rows, dtype = ids.row_size, context.rows(node), context.types.activations
    most = context.most(rows)
    integer = "scheme" in given and dtype == "float32"
    name = f"{buffer_name(ids.base)}[{ids.offset}:+{slots}].by_expert"
    order, first = context.keep(name, 4 * most * slots)
    starts, _ = context.keep(f"{name}.starts", 4 * (kinds + 1))
    launches: list[Launch] = []
    if first:
        kernel = context.kernel(
            routed_groups, kinds, slots, experts_stride=ids.row_stride, rows=rows
        )
        operands = (BATCH, context.value(given["experts"]), order, starts)
        launches.append(Launch(node.name, kernel, operands))
    source: tuple[Operand, ...] = (context.value(given["x"]),)
    stride = x.row_stride
    if integer:
        groups = int(given["scale"].meta["val"].shape[-1])
        values, scales, made = quantized(context, node, given["x"], inputs, groups, rows)
        launches.extend(made)
        source, stride = (values, scales), x.row_size
    format = format_of(context, given)
    tiles = routed_tiles(context.bucket(rows) * slots, experts, inputs, format, dtype)
    bias = given["bias"]
    kernel = context.kernel(
        routed_linear_kernel, visited, slots, outputs, inputs, format, tiles, x_stride=stride,
        shared=x.row_size == inputs, integer=integer, bias=None if bias is None else "float32",
        dtype=dtype, rows=rows, optional=visited > experts,
        residual=None if residual is None else context.view(residual).row_stride,
    )  # fmt: skip
    kernel = with_dtype(kernel, "out", context.result_dtypes(node)[0])  # logits are float32
    if residual is not None:
        kernel = with_dtype(kernel, "residual", context.dtype(residual))
    share = min(slots, experts) / experts
    weights = list(weights_of(context, given, share))
    if bias is not None:
        weights.append(context.weight(bias, dense()))
    if residual is not None:
        weights.append(context.value(residual))
    product = (BATCH, order, starts, *source, *weights, *context.results(node))
    return (*launches, Launch(node.name, kernel, product))


def _one_vector(context: LoweringContext, node: fx.Node) -> str | None:
    """Refuses rows that hold several vectors at a distance that is not their length."""
    x = arguments(node)["x"]
    view, length = context.view(x), int(x.meta["val"].shape[-1])
    if view.row_size != length and not view.dense:
        return f"a row of '{x}' holds {view.row_size // length} vectors and has gaps"
    return None


@lowering(gw.top_k.default, when=_one_vector)
def top_k(context: LoweringContext, node: fx.Node) -> tuple[Launch, ...]:
    """A row may hold several vectors (groups of experts)."""
    given = arguments(node)
    view, length = context.view(given["x"]), int(given["x"].meta["val"].shape[-1])
    values, _ = context.result_dtypes(node)
    kernel = context.kernel(
        top_k_kernel, length, int(given["k"]), x_stride=view.row_stride,
        dtype=context.dtype(given["x"]), rows=context.rows(node), vectors=view.row_size // length,
    )  # fmt: skip
    operands = (BATCH, context.value(given["x"]), *context.results(node))
    return (Launch(node.name, with_dtype(kernel, "values", values), operands),)


@lowering(gw.weighted_sum.default)
def weighted_sum(context: LoweringContext, node: fx.Node) -> tuple[Launch, ...]:
    """The slots of a token lie side by side in its row."""
    given = arguments(node)
    y, weights = context.view(given["y"]), context.view(given["weights"])
    kernel = context.kernel(
        weighted_sum_kernel, weights.row_size, y.row_size // weights.row_size,
        y_stride=y.row_stride, weights_stride=weights.row_stride, dtype=context.dtype(given["y"]),
        weights=context.dtype(given["weights"]), rows=context.rows(node),
    )  # fmt: skip
    inputs = (context.value(given["y"]), context.value(given["weights"]))
    return (Launch(node.name, kernel, (BATCH, *inputs, *context.results(node))),)
