"""gw.quantized_linear and gw.quantized_embedding: int8 weights with scales."""

from __future__ import annotations

import torch
from torch import fx

from graphwright.backends.tvm.blobs import dense
from graphwright.backends.tvm.context import LoweringContext, arguments
from graphwright.backends.tvm.kernels.linear_w8 import linear_w8
from graphwright.backends.tvm.kernels.quantize_rows import quantize_rows
from graphwright.backends.tvm.kernels.quantized_embedding import (
    quantized_embedding as embedding_kernel,
)
from graphwright.backends.tvm.layouts import linear_w8_layout, linear_w8_scales
from graphwright.backends.tvm.lower.linear import epilogue_of, one_vector_a_row
from graphwright.backends.tvm.lower.tokens import one_id_a_row
from graphwright.backends.tvm.phases import Phase
from graphwright.backends.tvm.registry import lowering
from graphwright.ir.schemes import Scheme

__all__ = ["quantized_embedding", "quantized_linear"]

gw = torch.ops.gw


@lowering(gw.quantized_linear.default, when=one_vector_a_row)
def quantized_linear(context: LoweringContext, node: fx.Node) -> tuple[Phase, ...]:
    """The input is quantized once for all products of the step that read it."""
    given = arguments(node)
    outputs, inputs = (int(size) for size in given["weight"].meta["val"].shape)
    group = Scheme.parse(given["scheme"]).group
    rows, x = context.rows(node), given["x"]
    values, scales = context.scratch(node)
    phases = []
    if any(context.fills_scratch(node)):
        stride = context.view(x).row_stride
        kernel = context.kernel(quantize_rows, inputs, group=group, x_stride=stride)
        phases.append(Phase(node.name, kernel, (context.value(x), values, scales), rows))
    options, epilogue = epilogue_of(context, given)
    kernel = context.kernel(
        linear_w8, outputs, inputs, group=group, max_rows=context.plan.max_tokens, **options
    )
    operands = (
        values,
        scales,
        context.weight(given["weight"], linear_w8_layout()),
        context.weight(given["scale"], linear_w8_scales()),
        *epilogue,
        *context.results(node),
    )
    phases.append(Phase(node.name, kernel, operands, rows))
    return tuple(phases)


@lowering(gw.quantized_embedding.default, when=one_id_a_row)
def quantized_embedding(context: LoweringContext, node: fx.Node) -> tuple[Phase, ...]:
    """As gw.embedding, with the scales of each row."""
    given = arguments(node)
    width = int(given["weight"].meta["val"].shape[1])
    groups = int(given["scale"].meta["val"].shape[1])
    tied = context.streamed(given["weight"])
    kernel = context.kernel(embedding_kernel, width, groups, layout="linear" if tied else "rows")
    layout = linear_w8_layout() if tied else dense(torch.int8)
    scales = linear_w8_scales() if tied else dense()
    operands = (
        context.value(given["ids"]),
        context.weight(given["weight"], layout, read=width),
        context.weight(given["scale"], scales, read=4 * groups),
        *context.results(node),
    )
    return (Phase(node.name, kernel, operands, context.rows(node)),)
