"""A residual addition and the normalization of its sum as one op with two results."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from graphwright.ir.layout import row_axis
from graphwright.ir.program import Program
from graphwright.passes.base import Pass, Stage
from graphwright.passes.fuse_layer_norm import FuseLayerNorm
from graphwright.passes.fuse_rms_norm import FuseRmsNorm
from graphwright.passes.pattern import Match, Rewrite, apply_rewrites

__all__ = ["FuseResidualNorm"]

aten, gw = torch.ops.aten, torch.ops.gw


def _rms_norm(a: Any, b: Any, weight: Any, eps: Any) -> Any:
    total = aten.add.Tensor(a, b)
    return gw.rms_norm.default(total, weight, eps=eps), total


def _add_rms_norm(a: Any, b: Any, weight: Any, eps: Any) -> Any:
    result = gw.add_rms_norm.default(a, b, weight, eps=eps)
    return result[1], result[0]


def _layer_norm(a: Any, b: Any, weight: Any, bias: Any, eps: Any) -> Any:
    total = aten.add.Tensor(a, b)
    return gw.layer_norm.default(total, weight, bias, eps=eps), total


def _add_layer_norm(a: Any, b: Any, weight: Any, bias: Any, eps: Any) -> Any:
    result = gw.add_layer_norm.default(a, b, weight, bias, eps=eps)
    return result[1], result[0]


def _check(match: Match) -> str | None:
    total = match.outputs[1].meta["val"]
    if row_axis(total) is None:
        return f"the sum {list(total.shape)} has no row for each token."
    for name in ("a", "b"):
        node = match[name]
        value = getattr(node, "meta", {}).get("val")
        if value is None or value.shape != total.shape or value.dtype != total.dtype:
            return f"the summand '{node}' does not have the sum's shape {list(total.shape)}."
    return None


@dataclass(frozen=True)
class FuseResidualNorm(Pass):
    """s = a + b, norm(s)  →  gw.add_rms_norm(a, b) or gw.add_layer_norm(a, b): (s, norm(s)).

    Leaves: a summand that is broadcast; a weight of the norm that is computed after the sum.
    """

    stage: ClassVar[Stage] = Stage.FUSE
    after: ClassVar[tuple[type[Pass], ...]] = (FuseRmsNorm, FuseLayerNorm)

    def run(self, program: Program) -> int:
        return apply_rewrites(
            self,
            program,
            (
                Rewrite(_rms_norm, _add_rms_norm, _check),
                Rewrite(_layer_norm, _add_layer_norm, _check),
            ),
        )
