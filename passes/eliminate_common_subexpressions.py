"""Computing each value once."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from graphwright.ir.program import Program
from graphwright.passes.base import Exactness, Pass, Stage

__all__ = ["EliminateCommonSubexpressions"]


@dataclass(frozen=True)
class EliminateCommonSubexpressions(Pass):
    """f(x), f(x) → one f(x), used twice; two names of one weight → one.

    Leaves: random ops and ops that write to their arguments.
    """

    stage: ClassVar = Stage.NORMALIZE
    exactness: ClassVar = Exactness.EXACT

    def run(self, program: Program) -> int:
        """Counts removed nodes. The first of equal nodes, in graph order, stays."""
        seen: dict[Hashable, fx.Node] = {}
        count = 0
        for node in list(program.graph.nodes):
            key = _key(program, node)
            if key is None:
                continue
            first = seen.setdefault(key, node)
            if first is not node and self.allowed():
                program.replace(node, first)
                count += 1
        return count


def _key(program: Program, node: fx.Node) -> Hashable | None:
    """Equal for two nodes that compute the same; None for one that must stay."""
    weight = program.weight_of(node)
    if weight is not None:
        return ("weight", id(weight))
    if node.op != "call_function" or not _is_pure(node.target):
        return None
    return (node.target, _freeze(node.args), _freeze(dict(node.kwargs)))


def _is_pure(target: Any) -> bool:
    if not isinstance(target, torch._ops.OpOverload):
        return getattr(target, "__module__", "") == "_operator"
    return not target._schema.is_mutable and torch.Tag.nondeterministic_seeded not in target.tags


def _freeze(value: Any) -> Hashable:
    """Hashable, and different for 1, 1.0 and True."""
    if isinstance(value, dict):
        return tuple(sorted((key, _freeze(item)) for key, item in value.items()))
    if isinstance(value, (list, tuple)):
        return tuple(_freeze(item) for item in value)
    return (type(value).__name__, str(value) if isinstance(value, float) else value)
