"""gw.causal_conv: convolve over the step and the state, then roll the state."""

from __future__ import annotations

import torch
from torch import fx

from graphwright.backends.triton.context import LoweringContext, arguments
from graphwright.backends.triton.kernels.causal_conv import causal_conv as causal_conv_kernel
from graphwright.backends.triton.kernels.causal_conv import roll_state
from graphwright.backends.triton.launches import Launch, Operand
from graphwright.backends.triton.lower.attention import slots_of
from graphwright.backends.triton.registry import lowering

__all__ = ["causal_conv"]

gw = torch.ops.gw
BATCH = Operand("batch")


@lowering(gw.causal_conv.default)
def causal_conv(context: LoweringContext, node: fx.Node) -> tuple[Launch, ...]:
    """The second launch writes the new state when all have read the old one."""
    given = arguments(node)
    outputs, taps = (int(size) for size in given["weight"].meta["val"].shape)
    view, dtype = context.view(given["x"]), context.dtype(given["x"])
    block_stride = context.kv.stride(str(given["state"].target), "float32")
    strides = {"x_stride": view.row_stride, "block_stride": block_stride}
    sequences, _, launches = slots_of(context, node, given)
    bias = None if given["bias"] is None else "float32"
    convolve = context.kernel(
        causal_conv_kernel, view.row_size, outputs, taps, bias=bias, dtype=dtype, **strides
    )
    roll = context.kernel(
        roll_state, view.row_size, taps, dtype=dtype, sequences=context.tokens, **strides
    )
    x, state, table = context.value(given["x"]), context.state(given["state"]), _TABLE
    positions, starts = context.value(given["positions"]), context.value(given["query_start"])
    weights = [context.weight(given["weight"])]
    if bias is not None:
        weights.append(context.weight(given["bias"]))
    return (
        *launches,
        Launch(
            node.name,
            convolve,
            (BATCH, x, *weights, state, positions, sequences, starts, table,
             *context.results(node)),
        ),
        Launch(node.name, roll, (BATCH, x, state, positions, starts, table)),
    )  # fmt: skip


_TABLE = Operand("block_table")
