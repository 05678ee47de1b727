"""gw.embedding and gw.select_rows: rows by number."""

from __future__ import annotations

import torch
from torch import fx

from graphwright.backends.blobs import dense
from graphwright.backends.rows import one_id_a_row
from graphwright.backends.tvm.context import LoweringContext, arguments
from graphwright.backends.tvm.kernels.embedding import embedding as embedding_kernel
from graphwright.backends.tvm.kernels.float_weights import FloatWeights
from graphwright.backends.tvm.kernels.select_rows import select_rows as select_rows_kernel
from graphwright.backends.tvm.layouts import linear_float_layout
from graphwright.backends.tvm.phases import Phase
from graphwright.backends.tvm.registry import lowering

__all__ = ["embedding", "select_rows"]

gw = torch.ops.gw


@lowering(gw.embedding.default, when=one_id_a_row)
def embedding(context: LoweringContext, node: fx.Node) -> tuple[Phase, ...]:
    """A tied table is read in the layout of the matrix product that streams it."""
    given = arguments(node)
    table = given["weight"].meta["val"]
    weights, width = FloatWeights.of(table.dtype), int(table.shape[1])
    tied = context.streamed(given["weight"])
    kernel = context.kernel(
        embedding_kernel, width, weights=weights, layout="linear" if tied else "rows"
    )
    layout = linear_float_layout(weights) if tied else dense(weights.dtype)
    weight = context.weight(given["weight"], layout, read=weights.dtype.itemsize * width)
    operands = (context.value(given["ids"]), weight, *context.results(node))
    replicated = context.replicable(node, width)
    return (Phase(node.name, kernel, operands, context.rows(node), replicated),)


def _float_rows(context: LoweringContext, node: fx.Node) -> str | None:
    dtype = arguments(node)["x"].meta["val"].dtype
    return None if dtype is torch.float32 else f"its rows are {dtype}, not float32"


@lowering(gw.select_rows.default, when=_float_rows)
def select_rows(context: LoweringContext, node: fx.Node) -> tuple[Phase, ...]:
    """One copy a sampled row."""
    given = arguments(node)
    view = context.view(given["x"])
    kernel = context.kernel(select_rows_kernel, view.row_size, x_stride=view.row_stride)
    operands = (context.value(given["x"]), context.value(given["rows"]), *context.results(node))
    replicated = context.replicable(node, view.row_size)
    return (Phase(node.name, kernel, operands, context.rows(node), replicated),)
