"""Layer normalization, the aten op and the spelled-out form, as one op."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from graphwright.ir.program import Program
from graphwright.passes.base import Pass, Stage
from graphwright.passes.fuse_rms_norm import (
    SQUARES,
    inverse_roots,
    is_channel_weight,
    norm_input_problem,
)
from graphwright.passes.pattern import Match, Rewrite, apply_rewrites

__all__ = ["FuseLayerNorm"]

aten, gw = torch.ops.aten, torch.ops.gw


def _whole(x: Any, shape: Any, weight: Any, bias: Any, eps: Any, fast: Any) -> Any:
    return aten.layer_norm.default(x, shape, weight, bias, eps, fast)


def _whole_check(match: Match) -> str | None:
    if len(match["shape"]) != 1:
        return f"it normalizes over the last {len(match['shape'])} axes, {match['shape']}."
    for name in ("weight", "bias"):
        if match[name] is not None and not is_channel_weight(match[name], match["x"]):
            return f"the {name} '{match[name]}' is not one weight for each channel."
    return norm_input_problem(match)


def _spelled(square: Callable[[Any], Any], divide: Callable[[Any, Any], Any]) -> Rewrite:
    def pattern(x: Any, eps: Any) -> Any:
        centered = aten.sub.Tensor(x, aten.mean.dim(x, [-1], True))
        variance = aten.mean.dim(square(centered), [-1], True)
        return divide(centered, aten.add.Tensor(variance, eps))

    def replacement(x: Any, eps: Any) -> Any:
        return gw.layer_norm.default(x, None, None, eps=eps)

    return Rewrite(pattern, replacement, norm_input_problem)


def _weighted(x: Any, parameter: Any, eps: Any) -> Any:
    return aten.mul.Tensor(gw.layer_norm.default(x, None, None, eps=eps), parameter)


def _shifted(x: Any, weight: Any, parameter: Any, eps: Any) -> Any:
    return aten.add.Tensor(gw.layer_norm.default(x, weight, None, eps=eps), parameter)


def _parameter_check(match: Match) -> str | None:
    if is_channel_weight(match["parameter"], match["x"]):
        return None
    return f"the operand '{match['parameter']}' is not one weight for each channel."


REWRITES = (
    Rewrite(
        _whole,
        lambda x, weight, bias, eps: gw.layer_norm.default(x, weight, bias, eps=eps),
        _whole_check,
        required=True,
    ),
    *(_spelled(square, divide) for square in SQUARES for divide in inverse_roots()),
    Rewrite(
        _weighted,
        lambda x, parameter, eps: gw.layer_norm.default(x, parameter, None, eps=eps),
        _parameter_check,
    ),
    Rewrite(
        _shifted,
        lambda x, weight, parameter, eps: gw.layer_norm.default(x, weight, parameter, eps=eps),
        _parameter_check,
    ),
)


@dataclass(frozen=True)
class FuseLayerNorm(Pass):
    """layer_norm, or (x - mean) * rsqrt(var + eps) * w + b  →  gw.layer_norm(x, w, b).

    A spelled-out norm, its weight and its bias are one rewrite each. Leaves: more than one axis;
    an intermediate with other users; rows that are not tokens; parameters that are not [channels].
    """

    stage: ClassVar[Stage] = Stage.FUSE

    def run(self, program: Program) -> int:
        return apply_rewrites(self, program, REWRITES)
