"""gw.linear: matrix products with their epilogues."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from graphwright.backends.blobs import dense
from graphwright.backends.tvm.context import LoweringContext, arguments
from graphwright.backends.tvm.kernels.float_weights import FloatWeights
from graphwright.backends.tvm.kernels.linear_float import float_tilings, linear_float
from graphwright.backends.tvm.kernels.matmul import TILE
from graphwright.backends.tvm.layouts import linear_float_layout
from graphwright.backends.tvm.phases import Operand, Phase, parts_of
from graphwright.backends.tvm.product_choices import choose_tilings
from graphwright.backends.tvm.registry import lowering

__all__ = ["epilogue_of", "linear", "one_vector_a_row"]

gw = torch.ops.gw


def one_vector_a_row(context: LoweringContext, node: fx.Node) -> str | None:
    """Refuses an input whose rows hold several vectors."""
    given = arguments(node)
    inputs = int(given["weight"].meta["val"].shape[1])
    found = context.view(given["x"]).row_size
    return (
        None if found == inputs else f"a row of '{given['x']}' has {found} elements, not {inputs}"
    )


@lowering(gw.linear.default, when=one_vector_a_row)
def linear(context: LoweringContext, node: fx.Node) -> tuple[Phase, ...]:
    """Float weights in tiles of 16 output channels."""
    given = arguments(node)
    outputs, inputs = (int(size) for size in given["weight"].meta["val"].shape)
    weights = FloatWeights.of(given["weight"].meta["val"].dtype)
    options, epilogue = epilogue_of(context, given)
    size = weights.tile_bytes(inputs) * outputs // TILE
    kernel = context.kernel(
        linear_float, outputs, inputs, weights=weights,
        x_stride=context.view(given["x"]).row_stride, max_rows=context.plan.max_tokens,
        tilings=choose_tilings(context.picks, context.cpu, weights.name, outputs, inputs, size,
                               context.plan.max_tokens, float_tilings(context.cpu, weights)),
        **options,
    )  # fmt: skip
    operands = (
        context.value(given["x"]),
        context.weight(given["weight"], linear_float_layout(weights)),
        *epilogue,
        *context.results(node),
    )
    rows, parts = context.rows(node), parts_of(size)
    return (Phase(node.name, kernel, operands, rows, parts=parts, stream=size),)


def epilogue_of(
    context: LoweringContext, given: dict[str, Any]
) -> tuple[dict[str, Any], list[Operand]]:
    """The options of a matrix kernel for bias, activation and residual, and their operands."""
    bias, residual = given["bias"], given["residual"]
    activation = None if given["activation"] == "none" else given["activation"]
    options: dict[str, Any] = {"bias": bias is not None, "activation": activation}
    options["residual_stride"] = None if residual is None else context.view(residual).row_stride
    operands = [] if bias is None else [context.weight(bias, dense())]
    if residual is not None:
        operands.append(context.value(residual))
    return options, operands
