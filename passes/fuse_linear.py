"""Matrix products with their epilogue: bias, activation and residual addition."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from graphwright.ir.layout import row_axis
from graphwright.ir.program import Program
from graphwright.passes.activation_patterns import ACTIVATION_PATTERNS
from graphwright.passes.base import Pass, Stage
from graphwright.passes.fuse_gated_activation import FuseGatedActivation
from graphwright.passes.fuse_rms_norm import SQUARES
from graphwright.passes.merge_projections import MergeProjections
from graphwright.passes.pattern import Match, Rewrite, apply_rewrites

__all__ = ["FuseLinear"]

aten, gw = torch.ops.aten, torch.ops.gw


def _plain(x: Any, weight: Any, bias: Any) -> Any:
    return aten.linear.default(x, weight, bias)


def _plain_check(match: Match) -> str | None:
    weight, bias, value = match["weight"], match["bias"], match["x"].meta["val"]
    if weight.op != "get_attr" or weight.meta["val"].dim() != 2:
        return f"the matrix '{weight.name}' is not a weight."
    if bias is not None and (bias.op != "get_attr" or bias.meta["val"].dim() != 1):
        return f"the bias '{bias.name}' is not a weight."
    if row_axis(value) in (None, value.dim() - 1):
        return f"the input '{match['x'].name}' {list(value.shape)} has no row for each token."
    return None


def _shifted(x: Any, weight: Any, bias: Any) -> Any:
    return aten.add.Tensor(gw.linear.default(x, weight, None, None, activation="none"), bias)


def _bias_check(match: Match) -> str | None:
    bias, rows = match["bias"], match["weight"].meta["val"].shape[0]
    if isinstance(bias, fx.Node) and bias.op == "get_attr" and bias.meta["val"].shape == (rows,):
        return None
    return f"the summand '{bias}' is not one bias for each of {rows} outputs."


def _activated(name: str, activation: Callable[[Any], Any]) -> Rewrite:
    def pattern(x: Any, weight: Any, bias: Any) -> Any:
        return activation(gw.linear.default(x, weight, bias, None, activation="none"))

    def replacement(x: Any, weight: Any, bias: Any) -> Any:
        return gw.linear.default(x, weight, bias, None, activation=name)

    return Rewrite(pattern, replacement)


def _squared(square: Callable[[Any], Any]) -> Rewrite:
    """relu(linear)² where the linear has its relu already."""

    def pattern(x: Any, weight: Any, bias: Any) -> Any:
        return square(gw.linear.default(x, weight, bias, None, activation="relu"))

    def replacement(x: Any, weight: Any, bias: Any) -> Any:
        return gw.linear.default(x, weight, bias, None, activation="relu2")

    return Rewrite(pattern, replacement)


def _summed(x: Any, weight: Any, bias: Any, residual: Any, name: Any) -> Any:
    y = gw.linear.default(x, weight, bias, None, activation=name)
    return aten.add.Tensor(y, residual)


def _with_residual(x: Any, weight: Any, bias: Any, residual: Any, name: Any) -> Any:
    return gw.linear.default(x, weight, bias, residual, activation=name)


def _parallel(
    x: Any, weight: Any, bias: Any, name: Any, x2: Any, weight2: Any, bias2: Any, name2: Any,
    residual: Any,
) -> Any:  # fmt: skip
    """(linear + linear2) + residual, where linear2 has become the residual of linear."""
    inner = gw.linear.default(x2, weight2, bias2, None, activation=name2)
    y = gw.linear.default(x, weight, bias, inner, activation=name)
    return aten.add.Tensor(y, residual)


def _parallel_replacement(
    x: Any, weight: Any, bias: Any, name: Any, x2: Any, weight2: Any, bias2: Any, name2: Any,
    residual: Any,
) -> Any:  # fmt: skip
    inner = gw.linear.default(x2, weight2, bias2, residual, activation=name2)
    return gw.linear.default(x, weight, bias, inner, activation=name)


def _residual_check(match: Match) -> str | None:
    residual, total = match["residual"], match.outputs[0].meta["val"]
    if not isinstance(residual, fx.Node):
        return f"the summand {residual} is a number."
    value = residual.meta["val"]
    if value.shape != total.shape or value.dtype != total.dtype:
        return f"the summand '{residual.name}' {list(value.shape)} is not {list(total.shape)}."
    return None


REWRITES = (
    Rewrite(
        _plain,
        lambda x, weight, bias: gw.linear.default(x, weight, bias, None, activation="none"),
        _plain_check,
        required=True,
    ),
    Rewrite(
        _shifted,
        lambda x, weight, bias: gw.linear.default(x, weight, bias, None, activation="none"),
        _bias_check,
    ),
    *(_activated(name, activation) for name, activation in ACTIVATION_PATTERNS),
    *(_squared(square) for square in SQUARES),
    Rewrite(_parallel, _parallel_replacement, _residual_check),
    Rewrite(_summed, _with_residual, _residual_check),
)


@dataclass(frozen=True)
class FuseLinear(Pass):
    """activation(linear(x, w) + bias) + residual  →  gw.linear(x, w, bias, residual, activation).

    The linear and each part of its epilogue are one rewrite each; of two linears in a sum one
    becomes the residual of the other. Leaves: the activation and addition of a product that others
    use too; a summand that is a number or broadcast; a matrix that is computed.
    """

    stage: ClassVar[Stage] = Stage.FUSE
    after: ClassVar[tuple[type[Pass], ...]] = (MergeProjections, FuseGatedActivation)

    def run(self, program: Program) -> int:
        return apply_rewrites(self, program, REWRITES)
