"""gw.causal_conv: convolve over the step and the state, then roll the state."""

from __future__ import annotations

import math

import torch
from torch import fx

from graphwright.backends.blobs import Layout, dense
from graphwright.backends.tvm.context import LoweringContext, arguments
from graphwright.backends.tvm.kernels.causal_conv import causal_conv as causal_conv_kernel
from graphwright.backends.tvm.kernels.causal_conv import roll_state
from graphwright.backends.tvm.phases import Operand, Phase
from graphwright.backends.tvm.registry import lowering

__all__ = ["causal_conv", "taps_layout"]

gw = torch.ops.gw


def taps_layout() -> Layout:
    """float32 [L, N], the tap of the token itself first."""
    return Layout(
        "conv-taps",
        "float32",
        lambda shape: math.prod(shape) * 4,
        lambda weight: weight.float().flip(1).t().contiguous().numpy(),
    )


@lowering(gw.causal_conv.default)
def causal_conv(context: LoweringContext, node: fx.Node) -> tuple[Phase, ...]:
    """Every thread has read the old state before any writes the new one."""
    given = arguments(node)
    outputs, taps = (int(size) for size in given["weight"].meta["val"].shape)
    view = context.view(given["x"])
    strides = {"x_stride": view.row_stride, "block_stride": context.kv.block_stride}
    x, state = context.value(given["x"]), context.state(given["state"])
    paging = (
        context.value(given["positions"]),
        context.value(given["query_start"]),
        Operand("block_table"),
    )
    weights = [context.weight(given["weight"], taps_layout())]
    if given["bias"] is not None:
        weights.append(context.weight(given["bias"], dense()))
    convolve = context.kernel(
        causal_conv_kernel, view.row_size, outputs, taps, bias=len(weights) > 1, **strides
    )
    batch, results = Operand("batch"), context.results(node)
    reads = (batch, x, *weights, state, *paging, *results)
    roll = context.kernel(roll_state, view.row_size, taps, **strides)
    return (
        Phase(node.name, convolve, reads, "T"),
        Phase(node.name, roll, (batch, x, state, *paging), "T"),
    )
