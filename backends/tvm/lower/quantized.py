"""gw.quantized_linear and gw.quantized_embedding: integer weights with scales."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from graphwright.backends.blobs import Layout
from graphwright.backends.rows import one_id_a_row
from graphwright.backends.tvm.context import LoweringContext, arguments
from graphwright.backends.tvm.kernels.linear_quantized import (
    linear_quantized,
    tile_bytes,
    tilings_of,
)
from graphwright.backends.tvm.kernels.matmul import TILE
from graphwright.backends.tvm.kernels.quantize_rows import quantize_rows
from graphwright.backends.tvm.kernels.quantized_embedding import (
    quantized_embedding as embedding_kernel,
)
from graphwright.backends.tvm.layouts import linear_quantized_layouts, table_quantized_layouts
from graphwright.backends.tvm.lower.linear import epilogue_of, one_vector_a_row
from graphwright.backends.tvm.phases import Operand, Phase, parts_of
from graphwright.backends.tvm.product_choices import choose_tilings
from graphwright.backends.tvm.registry import lowering
from graphwright.ir.schemes import Scheme

__all__ = ["quantized_embedding", "quantized_linear", "weight_parts"]

gw = torch.ops.gw


@lowering(gw.quantized_linear.default, when=one_vector_a_row)
def quantized_linear(context: LoweringContext, node: fx.Node) -> tuple[Phase, ...]:
    """The input is quantized once for all products of the step that read it, if it is not left as
    int8 by the step that computes it (ir/int8_results.py)."""
    given = arguments(node)
    outputs, inputs = (int(size) for size in given["weight"].meta["val"].shape)
    scheme = Scheme.parse(given["scheme"])
    rows, x = context.rows(node), given["x"]
    values, scales = context.scratch(node)
    phases = []
    if any(context.fills_scratch(node)):
        stride = context.view(x).row_stride
        kernel = context.kernel(quantize_rows, inputs, group=scheme.group, x_stride=stride)
        quantized = (context.value(x), values, scales)
        phases.append(Phase(node.name, kernel, quantized, rows, context.replicable(None, inputs)))
    options, epilogue = epilogue_of(context, given)
    size = tile_bytes(inputs, scheme) * outputs // TILE
    kernel = context.kernel(
        linear_quantized, outputs, inputs, scheme, max_rows=context.plan.max_tokens,
        tilings=choose_tilings(context.picks, context.cpu, str(scheme), outputs, inputs, size,
                               context.plan.max_tokens, tilings_of(context.cpu, scheme)),
        **options,
    )  # fmt: skip
    operands = (
        values.read(),
        scales.read(),
        *weight_parts(context, given, linear_quantized_layouts(scheme)),
        *epilogue,
        *context.results(node),
    )
    phases.append(Phase(node.name, kernel, operands, rows, parts=parts_of(size), stream=size))
    return tuple(phases)


@lowering(gw.quantized_embedding.default, when=one_id_a_row)
def quantized_embedding(context: LoweringContext, node: fx.Node) -> tuple[Phase, ...]:
    """As gw.embedding, with the scales of each row."""
    given = arguments(node)
    width, scheme = int(given["weight"].meta["val"].shape[1]), Scheme.parse(given["scheme"])
    tied = context.streamed(given["weight"])
    layouts = linear_quantized_layouts(scheme) if tied else table_quantized_layouts(scheme)
    kernel = context.kernel(embedding_kernel, width, scheme, layout="linear" if tied else "rows")
    operands = (
        context.value(given["ids"]),
        *weight_parts(context, given, layouts, one_row=True),
        *context.results(node),
    )
    replicated = context.replicable(node, width)
    return (Phase(node.name, kernel, operands, context.rows(node), replicated),)


def weight_parts(
    context: LoweringContext, given: dict[str, Any], layouts: tuple[Layout, ...],
    one_row: bool = False,
) -> list[Operand]:  # fmt: skip
    """The values, scales and perhaps zero points of a node; `one_row`: a token reads one row."""
    operands = []
    for name, layout in zip(("weight", "scale", "zero"), layouts, strict=False):
        shape = tuple(int(size) for size in given[name].meta["val"].shape)
        read = layout.size(shape) // shape[0] if one_row else None
        operands.append(context.weight(given[name], layout, read=read))
    return operands
