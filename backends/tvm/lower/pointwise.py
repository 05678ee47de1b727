"""The ops that work row by row: norms, gw.rope and gw.gated_act."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from graphwright.backends.blobs import dense
from graphwright.backends.tvm.context import LoweringContext, arguments
from graphwright.backends.tvm.kernels import norms
from graphwright.backends.tvm.kernels.gated_act import gated_act as gated_act_kernel
from graphwright.backends.tvm.kernels.kernel import Kernel
from graphwright.backends.tvm.kernels.rope import rope as rope_kernel
from graphwright.backends.tvm.phases import Operand, Phase
from graphwright.backends.tvm.registry import lowering
from graphwright.ir.memory import SHORT_ROW

__all__ = ["gated_act", "norm", "rope"]

gw = torch.ops.gw
_FEW_ACTIVATIONS = 2048  # an exponential and a division each
_NORMS: dict[Any, Callable[..., Kernel]] = {
    gw.rms_norm.default: norms.rms_norm,
    gw.layer_norm.default: norms.layer_norm,
    gw.add_rms_norm.default: norms.add_rms_norm,
    gw.add_layer_norm.default: norms.add_layer_norm,
}


@lowering(gw.rms_norm.default)
@lowering(gw.layer_norm.default)
@lowering(gw.add_rms_norm.default)
@lowering(gw.add_layer_norm.default)
def norm(context: LoweringContext, node: fx.Node) -> tuple[Phase, ...]:
    """A row may hold several groups that are normalized apart (heads). What products of integers
    alone read is left as int8."""
    given = arguments(node)
    eps = given.pop("eps")
    width = int(given["x"].meta["val"].shape[-1])
    options: dict[str, object] = {"groups": context.view(given["x"]).row_size // width, "eps": eps}
    operands: list[Operand] = []
    for name, value in given.items():
        if name in ("weight", "bias"):
            options[name] = value is not None
            if value is not None:
                operands.append(context.weight(value, dense()))
        else:
            options[f"{name}_stride"] = context.view(value).row_stride
            operands.append(context.value(value))
    results = context.results(node)
    if int8 := context.int8_results(node):
        options["int8"], places = int8
        results = (*results[:-1], *places)
    kernel = context.kernel(_NORMS[node.target], width, **options)
    operands.extend(results)
    replicated = context.replicable(node, context.view(given["x"]).row_size)
    return (Phase(node.name, kernel, tuple(operands), context.rows(node), replicated),)


@lowering(gw.rope.default)
def rope(context: LoweringContext, node: fx.Node) -> tuple[Phase, ...]:
    """Heads of x share one row of cosines and sines."""
    given = arguments(node)
    inputs = [given[name] for name in ("x", "cos", "sin")]
    x_stride, cos_stride, sin_stride = (context.view(each).row_stride for each in inputs)
    heads, dim = (int(size) for size in given["x"].meta["val"].shape[-2:])
    kernel = context.kernel(
        rope_kernel, heads, dim, int(given["cos"].meta["val"].shape[-1]), x_stride=x_stride,
        cos_stride=cos_stride, sin_stride=sin_stride, interleaved=bool(given["interleaved"]),
    )  # fmt: skip
    operands = (*(context.value(each) for each in inputs), *context.results(node))
    replicated = context.replicable(node, heads * dim)
    return (Phase(node.name, kernel, operands, context.rows(node), replicated),)


@lowering(gw.gated_act.default)
def gated_act(context: LoweringContext, node: fx.Node) -> tuple[Phase, ...]:
    """Gate and up are often two halves of one row. What products of integers alone read is left as
    int8: by each thread in a small step, as both halves of the work need the whole row."""
    given = arguments(node)
    gate, up = context.view(given["gate"]), context.view(given["up"])
    int8 = context.int8_results(node)
    kernel = context.kernel(
        gated_act_kernel, gate.row_size, gate_stride=gate.row_stride, up_stride=up.row_stride,
        activation=given["activation"], int8=int8 and int8[0],
    )  # fmt: skip
    results = int8[1] if int8 else context.results(node)
    operands = (context.value(given["gate"]), context.value(given["up"]), *results)
    replicated = context.replicable(node, gate.row_size, SHORT_ROW if int8 else _FEW_ACTIVATIONS)
    return (Phase(node.name, kernel, operands, context.rows(node), replicated),)
