"""Operators over whole axes: sums, softmax, the largest elements, norms."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F

from graphwright.frontend.onnx_models.registry import MICROSOFT, operator
from graphwright.frontend.onnx_models.values import Call, Value

__all__ = ["rms_norm"]

Reduction = Callable[[torch.Tensor, list[int], bool], torch.Tensor]


def _product(x: torch.Tensor, axes: list[int], keep: bool) -> torch.Tensor:
    for axis in sorted((axis % x.dim() for axis in axes), reverse=True):
        x = x.prod(axis, keepdim=keep)
    return x


_REDUCTIONS: dict[str, Reduction] = {
    "ReduceSum": lambda x, axes, keep: x.sum(axes, keepdim=keep).to(x.dtype),
    "ReduceMean": lambda x, axes, keep: x.mean(axes, keepdim=keep),
    "ReduceMax": lambda x, axes, keep: x.amax(axes, keepdim=keep),
    "ReduceMin": lambda x, axes, keep: x.amin(axes, keepdim=keep),
    "ReduceProd": _product,
    "ReduceL1": lambda x, axes, keep: x.abs().sum(axes, keepdim=keep),
    "ReduceL2": lambda x, axes, keep: x.square().sum(axes, keepdim=keep).sqrt(),
    "ReduceLogSum": lambda x, axes, keep: x.sum(axes, keepdim=keep).log(),
    "ReduceLogSumExp": lambda x, axes, keep: x.logsumexp(axes, keepdim=keep),
    "ReduceSumSquare": lambda x, axes, keep: x.square().sum(axes, keepdim=keep),
}  # fmt: skip


def _reduce(call: Call, function: Reduction) -> Value:
    x, axes = call.tensor(0), call.axes()
    if not axes and call.attribute("noop_with_empty_axes", 0):
        return x
    return function(x, axes or list(range(x.dim())), bool(call.attribute("keepdims", 1)))


for _name, _function in _REDUCTIONS.items():
    operator(_name)(functools.partial(_reduce, function=_function))


@operator("ArgMax", "ArgMin")
def _arg(call: Call) -> Value:
    x, axis = call.tensor(0), call.attribute("axis", 0)
    find = torch.argmax if call.kind == "ArgMax" else torch.argmin
    keep = bool(call.attribute("keepdims", 1))
    if call.attribute("select_last_index", 0):
        return torch.sub(x.shape[axis] - 1, find(x.flip(axis), axis, keepdim=keep))
    return find(x, axis, keepdim=keep)


@operator("CumSum")
def _cumulative(call: Call) -> Value:
    x, axis = call.tensor(0), int(call.numbers(1)[0])
    if call.attribute("reverse", 0):
        x = x.flip(axis)
    found = x.cumsum(axis).to(x.dtype)
    if call.attribute("exclusive", 0):
        found = found - x
    return found.flip(axis) if call.attribute("reverse", 0) else found


@operator("TopK")
def _top_k(call: Call) -> tuple[Value, ...]:
    largest, x = bool(call.attribute("largest", 1)), call.tensor(0)
    axis, count = call.attribute("axis", -1), int(call.numbers(1)[0])
    values, places = torch.sort(x, dim=axis, descending=largest, stable=True)
    return values.narrow(axis, 0, count), places.narrow(axis, 0, count)


@operator("Softmax", "LogSoftmax")
def _softmax(call: Call) -> Value:
    x = call.tensor(0)
    function = torch.softmax if call.kind == "Softmax" else torch.log_softmax
    if call.opset >= 13:
        return function(x, call.attribute("axis", -1))
    axis = call.attribute("axis", 1)  # the axes behind it, too, as one
    return function(x.flatten(axis), -1).reshape(x.shape)


@operator("LayerNormalization")
def _layer_norm(call: Call) -> Value | tuple[Value, ...]:
    x, axis = call.tensor(0), call.attribute("axis", -1)
    axes = list(range(axis % x.dim(), x.dim()))
    wide = x.to(torch.float32) if x.dtype != torch.float64 else x
    mean = wide.mean(axes, keepdim=True)
    centred = wide - mean
    scale = torch.rsqrt(centred.square().mean(axes, keepdim=True) + call.attribute("epsilon", 1e-5))
    found = (centred * scale).to(x.dtype) * call.tensor(1)
    bias = call.optional(2)
    found = found if bias is None else found + bias
    return (found, mean, scale)[: call.outputs] if call.outputs > 1 else found


def rms_norm(x: torch.Tensor, weight: torch.Tensor, epsilon: float, axis: int = -1) -> torch.Tensor:
    """x / sqrt(mean(x²) + epsilon) * weight over the axes from `axis`, in float32."""
    axes = list(range(axis % x.dim(), x.dim()))
    wide = x.to(torch.float32)
    scale = torch.rsqrt(wide.square().mean(axes, keepdim=True) + epsilon)
    return (wide * scale).to(x.dtype) * weight


@operator("RMSNormalization", "SimplifiedLayerNormalization")
@operator("SimplifiedLayerNormalization", domain=MICROSOFT)
def _rms_norm(call: Call) -> Value:
    return rms_norm(
        call.tensor(0), call.tensor(1), call.attribute("epsilon", 1e-5), call.attribute("axis", -1)
    )


@operator("SkipSimplifiedLayerNormalization", "SkipLayerNormalization", domain=MICROSOFT)
def _skip_norm(call: Call) -> tuple[Value, ...]:
    """The sum of input and skip, normed; the sum itself is the fourth output."""
    x = call.tensor(0) + call.tensor(1)
    simple = call.kind == "SkipSimplifiedLayerNormalization"
    bias = call.optional(3 if simple else 4)
    x = x if bias is None else x + bias
    epsilon = call.attribute("epsilon", 1e-5 if simple else 1e-12)
    if simple:
        found = rms_norm(x, call.tensor(2), epsilon)
    else:
        found = torch.layer_norm(x, x.shape[-1:], call.tensor(2), call.optional(3), epsilon)
    return found, x, x, x


@operator("EmbedLayerNormalization", domain=MICROSOFT)
def _embedded(call: Call) -> tuple[Value, ...]:
    """The normed sum of embeddings of tokens, positions and segments; the sum is the third one."""
    ids = call.tensor(0).to(torch.int64)
    positions = call.optional(8)
    if positions is None:
        positions = torch.arange(ids.shape[1])[None, :]
    x = F.embedding(ids, call.tensor(2)) + F.embedding(positions.to(torch.int64), call.tensor(3))
    if call.has(1) and call.has(4):
        x = x + F.embedding(call.tensor(1).to(torch.int64), call.tensor(4))
    epsilon = call.attribute("epsilon", 1e-12)
    found = torch.layer_norm(x, x.shape[-1:], call.tensor(5), call.tensor(6), epsilon)
    return found, torch.zeros(ids.shape[0], dtype=torch.int32), x


@operator("BatchNormalization")
def _batch_norm(call: Call) -> Value:
    if call.attribute("training_mode", 0):
        raise call.error("is in training mode")
    x, weight, bias, mean, variance = (call.tensor(i) for i in range(5))
    shape = [1, -1] + [1] * (x.dim() - 2)
    scale = weight / torch.sqrt(variance + call.attribute("epsilon", 1e-5))
    return (x - mean.reshape(shape)) * scale.reshape(shape) + bias.reshape(shape)
