"""The call that reads a weight in a scheme, in place of the one that reads it as floats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch

from graphwright.ir.float_scheme import AnyScheme, FloatScheme
from graphwright.passes.weight_roles import Role, weight_argument

__all__ = ["Call", "call_with_parts"]

gw = torch.ops.gw
Call: TypeAlias = tuple[Any, list[Any], dict[str, Any]]
"""What is called, with which arguments."""


def call_with_parts(
    call: tuple[Any, Sequence[Any], Mapping[str, Any]],
    role: Role,
    parts: Sequence[Any],
    scheme: AnyScheme,
) -> Call:
    """`call` of a gw op that reads a weight in `role`, over the weight's `parts`: nodes or tensors
    alike. Those of a float scheme are the weight itself, in fewer bits.
    """
    target, args, kwargs = call
    if isinstance(scheme, FloatScheme):
        place = weight_argument(role)
        return target, [*args[:place], *parts, *args[place + 1 :]], dict(kwargs)
    weight, scale, *zeros = parts
    zero: Any = zeros[0] if zeros else None
    options: dict[str, Any] = {"scheme": str(scheme)}
    if role == "experts":
        x, experts, _, *bias = args
        target = gw.quantized_routed_linear.default
        arguments = _given(x, experts, weight, scale, *_padded(bias, 1), zero)
    elif role == "embedding":
        target = gw.quantized_embedding.default
        arguments = _given(weight, scale, args[1], zero)
    else:
        x, _, *epilogue = args
        target = gw.quantized_linear.default
        arguments = _given(x, weight, scale, *_padded(epilogue, 2), zero)
        options["activation"] = kwargs.get("activation", "none")
    return target, arguments, options


def _padded(arguments: list[Any], count: int) -> list[Any]:
    return arguments + [None] * (count - len(arguments))


def _given(*arguments: Any) -> list[Any]:
    """The arguments up to the last one that is not None."""
    last = max(i for i, each in enumerate(arguments) if each is not None)
    return list(arguments[: last + 1])
