"""The ops that work row by row: norms, gw.rope and gw.gated_act."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from graphwright.backends.triton.context import LoweringContext, arguments
from graphwright.backends.triton.kernels.gated_act import gated_act as gated_act_kernel
from graphwright.backends.triton.kernels.kernel import with_dtype
from graphwright.backends.triton.kernels.norms import norm as norm_kernel
from graphwright.backends.triton.kernels.rope import rope as rope_kernel
from graphwright.backends.triton.launches import Launch, Operand
from graphwright.backends.triton.lower.linear import product
from graphwright.backends.triton.registry import lowering

__all__ = ["gated_act", "norm", "rope"]

gw = torch.ops.gw
BATCH = Operand("batch")
_KINDS: dict[Any, str] = {
    gw.rms_norm.default: "rms_norm",
    gw.layer_norm.default: "layer_norm",
    gw.add_rms_norm.default: "rms_norm",
    gw.add_layer_norm.default: "layer_norm",
}


@lowering(gw.rms_norm.default)
@lowering(gw.layer_norm.default)
@lowering(gw.add_rms_norm.default)
@lowering(gw.add_layer_norm.default)
def norm(context: LoweringContext, node: fx.Node) -> tuple[Launch, ...]:
    """A row may hold several groups that are normalized apart (heads)."""
    if node in context.fusions.absorbed:
        return ()
    given = arguments(node)
    width = int(given["x"].meta["val"].shape[-1])
    x, residual, weight, bias = (given.get(name) for name in ("x", "residual", "weight", "bias"))
    if residual is not None and context.fusions.norm(x) is not None:
        x, residual = residual, x
    options: dict[str, Any] = {}
    weights = []
    before = context.fusions.norm(residual)
    if before is not None:
        normed = arguments(before)
        residual = normed["x"]
        options = {"before": "float32", "before_eps": float(normed["eps"])}
        weights.append(context.weight(normed["weight"]))
    kernel = context.kernel(
        norm_kernel, _KINDS[node.target], width, x_stride=context.view(x).row_stride,
        residual_stride=None if residual is None else context.view(residual).row_stride,
        weight=None if weight is None else "float32", bias=None if bias is None else "float32",
        eps=float(given["eps"]), groups=context.view(x).row_size // width,
        dtype=context.types.activations, rows=context.rows(node), **options,
    )  # fmt: skip
    kernel = with_dtype(kernel, "x", context.dtype(x))
    if residual is not None:
        kernel = with_dtype(kernel, "residual", context.dtype(residual))
    values = [context.value(each) for each in (x, residual) if each is not None]
    weights += [context.weight(each) for each in (weight, bias) if each is not None]
    return (Launch(node.name, kernel, (BATCH, *values, *weights, *context.results(node))),)


def _one_stride(context: LoweringContext, node: fx.Node) -> str | None:
    """Refuses angles whose rows lie differently far apart."""
    given = arguments(node)
    cos, sin = (context.view(given[name]).row_stride for name in ("cos", "sin"))
    return None if cos == sin else f"rows of cosines are {cos} apart and of sines {sin}"


@lowering(gw.rope.default, when=_one_stride)
def rope(context: LoweringContext, node: fx.Node) -> tuple[Launch, ...]:
    """Heads of x share one row of cosines and sines."""
    if node in context.fusions.absorbed:
        return ()
    given = arguments(node)
    heads, dim = (int(size) for size in given["x"].meta["val"].shape[-2:])
    kernel = context.kernel(
        rope_kernel, heads, dim, int(given["cos"].meta["val"].shape[-1]),
        x_stride=context.view(given["x"]).row_stride,
        angle_stride=context.view(given["cos"]).row_stride,
        interleaved=bool(given["interleaved"]), dtype=context.dtype(given["x"]),
        angles=context.dtype(given["cos"]),
    )  # fmt: skip
    inputs = (context.value(given[name]) for name in ("x", "cos", "sin"))
    return (Launch(node.name, kernel, (BATCH, *inputs, *context.results(node))),)


@lowering(gw.gated_act.default)
def gated_act(context: LoweringContext, node: fx.Node) -> tuple[Launch, ...]:
    """Gate and up are often two halves of one row, which the product below can gate itself."""
    given = arguments(node)
    if (gated := context.fusions.gates.get(node)) is not None:
        return product(
            context, gated.product, node, activation=given["activation"],
            gate=(gated.gate, gated.up),
        )  # fmt: skip
    gate, up = context.view(given["gate"]), context.view(given["up"])
    kernel = context.kernel(
        gated_act_kernel, gate.row_size, gate_stride=gate.row_stride, up_stride=up.row_stride,
        activation=given["activation"], dtype=context.dtype(given["gate"]),
        rows=context.rows(node),
    )  # fmt: skip
    inputs = (context.value(given["gate"]), context.value(given["up"]))
    return (Launch(node.name, kernel, (BATCH, *inputs, *context.results(node))),)
