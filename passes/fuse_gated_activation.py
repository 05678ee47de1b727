"""The gate of a gated feed-forward layer as one op."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from graphwright.ir.layout import VIEW_OPS, is_view, row_axis
from graphwright.ir.program import Program
from graphwright.passes.activation_patterns import ACTIVATION_PATTERNS
from graphwright.passes.base import Pass, Stage
from graphwright.passes.pattern import Match, Rewrite, apply_rewrites

__all__ = ["FuseGatedActivation"]

aten, gw = torch.ops.aten, torch.ops.gw


def _check(match: Match) -> str | None:
    gate, up = match["gate"], match["up"]
    if not isinstance(up, fx.Node):
        return f"the other factor, {up}, is a number."
    if gate is up:
        return f"'{gate.name}' is its own gate."
    shape, other = gate.meta["val"].shape, up.meta["val"].shape
    if shape != other:
        return f"the gate is {list(shape)} and the other factor {list(other)}."
    if row_axis(gate.meta["val"]) is None:
        return f"the gate {list(shape)} has no row for each token."
    for part in (gate, up):
        if part.target in VIEW_OPS and not is_view(part):
            return f"'{part.name}' is scattered over its row, so it would have to be copied."
    return None


def _gated(name: str, activation: Callable[[Any], Any]) -> Rewrite:
    def pattern(gate: Any, up: Any) -> Any:
        return aten.mul.Tensor(activation(gate), up)

    def replacement(gate: Any, up: Any) -> Any:
        return gw.gated_act.default(gate, up, activation=name)

    return Rewrite(pattern, replacement, _check)


REWRITES = tuple(_gated(name, activation) for name, activation in ACTIVATION_PATTERNS)


@dataclass(frozen=True)
class FuseGatedActivation(Pass):
    """activation(gate) * up  →  gw.gated_act(gate, up).

    Leaves: an activation that others use too; a factor that is a number or broadcast; parts of each
    slot's product by experts, which do not lie together in a token's row.
    """

    stage: ClassVar[Stage] = Stage.FUSE

    def run(self, program: Program) -> int:
        return apply_rewrites(self, program, REWRITES)
