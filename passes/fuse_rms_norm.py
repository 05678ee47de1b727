"""Root-mean-square normalization, however it is spelled, as one op."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from graphwright.ir.layout import row_axis
from graphwright.ir.program import Program
from graphwright.passes.base import Pass, Stage
from graphwright.passes.pattern import Match, Rewrite, apply_rewrites, is_number

__all__ = ["SQUARES", "FuseRmsNorm", "inverse_roots", "is_channel_weight", "norm_input_problem"]

aten, gw = torch.ops.aten, torch.ops.gw
SQUARES: tuple[Callable[[Any], Any], ...] = (
    lambda x: aten.pow.Tensor_Scalar(x, 2),
    lambda x: aten.mul.Tensor(x, x),
    lambda x: aten.square.default(x),
)


def inverse_roots() -> tuple[Callable[[Any, Any], Any], ...]:
    """The ways to write x / sqrt(v), as functions of x and v."""
    return (
        lambda x, v: aten.mul.Tensor(x, aten.rsqrt.default(v)),
        lambda x, v: aten.mul.Tensor(x, aten.pow.Tensor_Scalar(v, -0.5)),
        lambda x, v: aten.mul.Tensor(x, aten.reciprocal.default(aten.sqrt.default(v))),
        lambda x, v: aten.div.Tensor(x, aten.sqrt.default(v)),
    )


def norm_input_problem(match: Match) -> str | None:
    """Why `x` and `eps` of a match are no input of a normalization over tokens' rows."""
    if not is_number(match["eps"]):
        return f"eps is not a number but {match['eps']}."
    value = match["x"].meta["val"]
    if not value.dtype.is_floating_point:
        return f"the input '{match['x'].name}' is {value.dtype}, which is not floating."
    if row_axis(value) is None:
        return f"the input '{match['x'].name}' {list(value.shape)} has no row for each token."
    return None


def is_channel_weight(node: Any, like: fx.Node) -> bool:
    """Is `node` a weight with one number for each channel (the last axis) of `like`?"""
    if not isinstance(node, fx.Node) or node.op != "get_attr":
        return False
    return list(node.meta["val"].shape) == [like.meta["val"].shape[-1]]


def _spelled(square: Callable[[Any], Any], divide: Callable[[Any, Any], Any]) -> Rewrite:
    def pattern(x: Any, eps: Any) -> Any:
        return divide(x, aten.add.Tensor(aten.mean.dim(square(x), [-1], True), eps))

    def replacement(x: Any, eps: Any) -> Any:
        return gw.rms_norm.default(x, None, eps=eps)

    return Rewrite(pattern, replacement, norm_input_problem)


def _whole(x: Any, size: Any, weight: Any, eps: Any) -> Any:
    return aten.rms_norm.default(x, [size], weight, eps)


def _whole_check(match: Match) -> str | None:
    return _weight_check(match) or (None if match["eps"] is None else norm_input_problem(match))


def _whole_replacement(x: Any, weight: Any, eps: Any) -> Any:
    smallest = torch.finfo(torch.float32).eps  # what aten.rms_norm takes when it is given none
    return gw.rms_norm.default(x, weight, eps=smallest if eps is None else eps)


def _weighted(x: Any, weight: Any, eps: Any) -> Any:
    return aten.mul.Tensor(gw.rms_norm.default(x, None, eps=eps), weight)


def _weight_check(match: Match) -> str | None:
    weight = match["weight"]
    if weight is None or is_channel_weight(weight, match["x"]):
        return None
    return f"the factor '{weight}' is not one weight for each channel."


REWRITES = (
    *(_spelled(square, divide) for square in SQUARES for divide in inverse_roots()),
    Rewrite(_whole, _whole_replacement, _whole_check, required=True),
    Rewrite(
        _weighted,
        lambda x, weight, eps: gw.rms_norm.default(x, weight, eps=eps),
        _weight_check,
    ),
)


@dataclass(frozen=True)
class FuseRmsNorm(Pass):
    """x * rsqrt(mean(x²) + eps), then * w  →  gw.rms_norm(x, w).

    The norm and its weight are one rewrite each. Leaves: an intermediate with other users; integer
    x; rows that are not tokens; a factor that is not a weight of x's channels (a product stays).
    """

    stage: ClassVar[Stage] = Stage.FUSE

    def run(self, program: Program) -> int:
        return apply_rewrites(self, program, REWRITES)
