"""How models spell activation functions: each spelling is a pattern of one parameter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

__all__ = ["ACTIVATION_PATTERNS"]

aten = torch.ops.aten
add, mul = aten.add.Tensor, aten.mul.Tensor
_SQRT_2_OVER_PI, _SQRT_HALF = 0.7978845608028654, 0.7071067811865476
Spelling = Callable[[Any], Any]


def _silu_of_sigmoid(x: Any) -> Any:
    return mul(x, aten.sigmoid.default(x))


def _gelu_tanh(inner: Spelling) -> tuple[Spelling, ...]:
    """x/2 * (1 + tanh(inner(x))), with the products in either order."""
    return (
        lambda x: mul(mul(x, 0.5), add(aten.tanh.default(inner(x)), 1)),
        lambda x: mul(mul(x, add(aten.tanh.default(inner(x)), 1)), 0.5),
        lambda x: mul(x, mul(add(aten.tanh.default(inner(x)), 1), 0.5)),
    )


_TANH_ARGUMENTS: tuple[Spelling, ...] = (
    lambda x: mul(add(x, mul(aten.pow.Tensor_Scalar(x, 3), 0.044715)), _SQRT_2_OVER_PI),
    lambda x: mul(mul(x, _SQRT_2_OVER_PI), add(mul(mul(x, 0.044715), x), 1)),
    lambda x: mul(mul(x, _SQRT_2_OVER_PI), add(mul(aten.pow.Tensor_Scalar(x, 2), 0.044715), 1)),
)

# What gw ops call the activation -> one way to write it. The first that matches is taken.
ACTIVATION_PATTERNS: tuple[tuple[str, Spelling], ...] = (
    ("silu", lambda x: aten.silu.default(x)),
    ("silu", _silu_of_sigmoid),
    ("gelu", lambda x: aten.gelu.default(x)),
    ("gelu", lambda x: mul(mul(x, 0.5), add(aten.erf.default(mul(x, _SQRT_HALF)), 1))),
    ("gelu", lambda x: mul(mul(x, 0.5), add(aten.erf.default(aten.div.Tensor(x, 2**0.5)), 1))),
    ("gelu_tanh", lambda x: aten.gelu.default(x, approximate="tanh")),
    *(("gelu_tanh", f) for inner in _TANH_ARGUMENTS for f in _gelu_tanh(inner)),
    ("relu2", lambda x: aten.pow.Tensor_Scalar(aten.relu.default(x), 2)),
    ("relu2", lambda x: aten.square.default(aten.relu.default(x))),
    ("relu", lambda x: aten.relu.default(x)),
    ("sigmoid", lambda x: aten.sigmoid.default(x)),
    ("tanh", lambda x: aten.tanh.default(x)),
)
