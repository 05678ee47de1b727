"""Operators that compute each element by itself."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, TypeGuard

import numpy as np
import torch
import torch.nn.functional as F

from graphwright.frontend.onnx_models.dtypes import torch_dtype
from graphwright.frontend.onnx_models.registry import MICROSOFT, operator
from graphwright.frontend.onnx_models.values import Call, Known, Value, as_tensor, plain_number

__all__ = ["both", "gelu"]

_UNARY: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "Abs": torch.abs, "Neg": torch.neg, "Exp": torch.exp, "Log": torch.log, "Sqrt": torch.sqrt,
    "Reciprocal": torch.reciprocal, "Sigmoid": torch.sigmoid, "Tanh": torch.tanh,
    "Relu": torch.relu, "Erf": torch.erf, "Sin": torch.sin, "Cos": torch.cos, "Tan": torch.tan,
    "Asin": torch.asin, "Acos": torch.acos, "Atan": torch.atan, "Sinh": torch.sinh,
    "Cosh": torch.cosh, "Asinh": torch.asinh, "Acosh": torch.acosh, "Atanh": torch.atanh,
    "Floor": torch.floor, "Ceil": torch.ceil, "Round": torch.round, "Sign": torch.sign,
    "Not": torch.logical_not, "BitwiseNot": torch.bitwise_not, "IsNaN": torch.isnan,
    "Softplus": F.softplus, "Softsign": F.softsign, "HardSwish": F.hardswish, "Mish": F.mish,
}  # fmt: skip


def _divide(a: Any, b: Any) -> torch.Tensor:
    first = a if isinstance(a, torch.Tensor) else b
    return torch.div(a, b) if first.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


_BINARY: dict[str, Callable[[Any, Any], torch.Tensor]] = {
    "Add": torch.add, "Sub": torch.sub, "Mul": torch.mul, "Div": _divide,
    "And": torch.logical_and, "Or": torch.logical_or, "Xor": torch.logical_xor, "Equal": torch.eq,
    "Greater": torch.gt, "GreaterOrEqual": torch.ge, "Less": torch.lt, "LessOrEqual": torch.le,
    "BitwiseAnd": torch.bitwise_and, "BitwiseOr": torch.bitwise_or, "BitwiseXor": torch.bitwise_xor,
}  # fmt: skip


def both(call: Call) -> tuple[Any, Any]:
    """Two operands: one that is a known number stays a number beside a tensor that it fits."""
    a, b = call.value(0), call.value(1)
    if _is_number(b) and isinstance(a, torch.Tensor) and a.dim() >= np.ndim(b):
        return a, plain_number(b)
    return as_tensor(a), as_tensor(b)


def _is_number(value: Value) -> TypeGuard[Known]:
    return not isinstance(value, torch.Tensor) and value.size == 1


def _register() -> None:
    for name, function in _UNARY.items():
        operator(name)(functools.partial(_unary, function=function))
    for name, pair in _BINARY.items():
        operator(name)(functools.partial(_binary, function=pair))


def _unary(call: Call, function: Callable[[torch.Tensor], torch.Tensor]) -> Value:
    return function(call.tensor(0))


def _binary(call: Call, function: Callable[[Any, Any], torch.Tensor]) -> Value:
    return function(*both(call))


_register()


@operator("Identity", "Dropout")
def _identity(call: Call) -> Value | tuple[Value, ...]:
    if call.has(2) and call.kind == "Dropout" and bool(call.scalar(2)):
        raise call.error("is in training mode")
    if call.outputs == 1:
        return call.value(0)
    return call.value(0), torch.ones_like(call.tensor(0), dtype=torch.bool)


@operator("Pow")
def _pow(call: Call) -> Value:
    a, b = both(call)
    return torch.pow(a, b).to(a.dtype)


@operator("Mod")
def _mod(call: Call) -> Value:
    a, b = both(call)
    return torch.fmod(a, b) if call.attribute("fmod", 0) else torch.remainder(a, b)


@operator("BitShift")
def _bit_shift(call: Call) -> Value:
    a, b = call.tensor(0), call.tensor(1)
    left = call.attribute("direction") == "LEFT"
    return torch.bitwise_left_shift(a, b) if left else torch.bitwise_right_shift(a, b)


@operator("Min")
def _min(call: Call) -> Value:
    return functools.reduce(torch.minimum, call.tensors())


@operator("Max")
def _max(call: Call) -> Value:
    return functools.reduce(torch.maximum, call.tensors())


@operator("Sum")
def _sum(call: Call) -> Value:
    return functools.reduce(torch.add, call.tensors())


@operator("Mean")
def _mean(call: Call) -> Value:
    return functools.reduce(torch.add, call.tensors()) / len(call.tensors())


@operator("Where")
def _where(call: Call) -> Value:
    a, b = (
        plain_number(e) if _is_number(e) else as_tensor(e) for e in (call.value(1), call.value(2))
    )
    if not isinstance(a, torch.Tensor) and not isinstance(b, torch.Tensor):
        a = call.tensor(1)
    kind = next(each.dtype for each in (a, b) if isinstance(each, torch.Tensor))
    return torch.where(call.tensor(0), a, b).to(kind)


@operator("Cast")
def _cast(call: Call) -> Value:
    return call.tensor(0).to(torch_dtype(call.attribute("to"), call.keeps_types))


@operator("CastLike")
def _cast_like(call: Call) -> Value:
    return call.tensor(0).to(call.tensor(1).dtype)


@operator("Clip")
def _clip(call: Call) -> Value:
    x = call.tensor(0)
    low, high = call.optional(1), call.optional(2)
    low = low if low is not None else _scalar_attribute(call, "min")
    high = high if high is not None else _scalar_attribute(call, "max")
    x = x if low is None else torch.maximum(x, low.to(x.dtype))
    return x if high is None else torch.minimum(x, high.to(x.dtype))


def _scalar_attribute(call: Call, name: str) -> torch.Tensor | None:
    found = call.attribute(name)
    return None if found is None else torch.tensor(found)


@operator("IsInf")
def _is_inf(call: Call) -> Value:
    x = call.tensor(0)
    found = torch.isinf(x)
    if not call.attribute("detect_negative", 1):
        found = found & (x > 0)
    return found if call.attribute("detect_positive", 1) else found & (x < 0)


@operator("LeakyRelu")
def _leaky_relu(call: Call) -> Value:
    return F.leaky_relu(call.tensor(0), call.attribute("alpha", 0.01))


@operator("Elu")
def _elu(call: Call) -> Value:
    return F.elu(call.tensor(0), call.attribute("alpha", 1.0))


@operator("Celu")
def _celu(call: Call) -> Value:
    return F.celu(call.tensor(0), call.attribute("alpha", 1.0))


@operator("Selu")
def _selu(call: Call) -> Value:
    x = call.tensor(0)
    alpha, gamma = call.attribute("alpha", 1.67326319), call.attribute("gamma", 1.05070102)
    return torch.mul(torch.where(x > 0, x, alpha * torch.exp(x) - alpha), gamma)


@operator("HardSigmoid")
def _hard_sigmoid(call: Call) -> Value:
    alpha, beta = call.attribute("alpha", 0.2), call.attribute("beta", 0.5)
    return torch.clamp(alpha * call.tensor(0) + beta, 0, 1)


@operator("ThresholdedRelu")
def _thresholded_relu(call: Call) -> Value:
    x = call.tensor(0)
    return torch.where(x > call.attribute("alpha", 1.0), x, torch.zeros_like(x))


@operator("PRelu")
def _prelu(call: Call) -> Value:
    x = call.tensor(0)
    return torch.where(x >= 0, x, x * call.tensor(1))


def gelu(x: torch.Tensor, tanh: bool) -> torch.Tensor:
    """Exact, or by tanh."""
    return F.gelu(x, approximate="tanh" if tanh else "none")


@operator("Gelu")
def _gelu(call: Call) -> Value:
    return gelu(call.tensor(0), call.attribute("approximate", "none") == "tanh")


@operator("Gelu", "BiasGelu", domain=MICROSOFT)
def _bias_gelu(call: Call) -> Value:
    bias = call.optional(1)
    return gelu(call.tensor(0) if bias is None else call.tensor(0) + bias, False)


@operator("FastGelu", domain=MICROSOFT)
def _fast_gelu(call: Call) -> Value:
    bias = call.optional(1)
    return gelu(call.tensor(0) if bias is None else call.tensor(0) + bias, True)


@operator("QuickGelu", domain=MICROSOFT)
def _quick_gelu(call: Call) -> Value:
    x = call.tensor(0)
    return x * torch.sigmoid(call.attribute("alpha", 1.702) * x)


@operator("Swish")
def _swish(call: Call) -> Value:
    x = call.tensor(0)
    alpha = call.attribute("alpha", 1.0)
    return F.silu(x) if math.isclose(alpha, 1.0) else x * torch.sigmoid(alpha * x)
