"""gw.embedding, gw.quantized_embedding and gw.select_rows: rows by number."""

from __future__ import annotations

import torch
from torch import fx

from graphwright.backends.rows import one_id_a_row
from graphwright.backends.triton.context import LoweringContext, arguments
from graphwright.backends.triton.dtypes import ITEM_SIZES
from graphwright.backends.triton.kernels.embedding import embedding as embedding_kernel
from graphwright.backends.triton.kernels.embedding import (
    quantized_embedding as quantized_embedding_kernel,
)
from graphwright.backends.triton.kernels.select_rows import select_rows as select_rows_kernel
from graphwright.backends.triton.launches import Launch, Operand
from graphwright.backends.triton.lower.linear import format_of, weights_of
from graphwright.backends.triton.registry import lowering
from graphwright.backends.triton.weights import dense_as

__all__ = ["embedding", "quantized_embedding", "select_rows"]

gw = torch.ops.gw
BATCH = Operand("batch")


@lowering(gw.embedding.default, when=one_id_a_row)
def embedding(context: LoweringContext, node: fx.Node) -> tuple[Launch, ...]:
    """A table that a product reads too lies in memory once, in the product's layout."""
    given = arguments(node)
    width = int(given["weight"].meta["val"].shape[1])
    format = format_of(context, given)
    (out,) = context.result_dtypes(node)
    kernel = context.kernel(embedding_kernel, width, weight=format.dtype, dtype=out)
    layout = dense_as(format.dtype)
    weight = context.weight(given["weight"], layout, read=width * ITEM_SIZES[format.dtype])
    operands = (BATCH, weight, context.value(given["ids"]), *context.results(node))
    return (Launch(node.name, kernel, operands),)


@lowering(gw.quantized_embedding.default, when=one_id_a_row)
def quantized_embedding(context: LoweringContext, node: fx.Node) -> tuple[Launch, ...]:
    """As gw.embedding, with the scales and zero points of each row."""
    given = arguments(node)
    count, width = (int(size) for size in given["weight"].meta["val"].shape)
    (out,) = context.result_dtypes(node)
    kernel = context.kernel(quantized_embedding_kernel, width, given["scheme"], dtype=out)
    weights = weights_of(context, given, share=1 / count)
    operands = (BATCH, *weights, context.value(given["ids"]), *context.results(node))
    return (Launch(node.name, kernel, operands),)


@lowering(gw.select_rows.default)
def select_rows(context: LoweringContext, node: fx.Node) -> tuple[Launch, ...]:
    """One copy a sampled row."""
    given = arguments(node)
    view, dtype = context.view(given["x"]), context.dtype(given["x"])
    kernel = context.kernel(
        select_rows_kernel, view.row_size, x_stride=view.row_stride, dtype=dtype
    )
    inputs = (context.value(given["x"]), context.value(given["rows"]))
    return (Launch(node.name, kernel, (BATCH, *inputs, *context.results(node))),)
