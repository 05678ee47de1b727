"""Constant factors of a linear's result, moved into its weight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from graphwright.ir.program import Program
from graphwright.ir.weights import Expression
from graphwright.passes.base import Pass, Stage
from graphwright.passes.pattern import is_number

__all__ = ["FoldScales"]

aten = torch.ops.aten
_MUL, _DIV = aten.mul.Tensor, aten.div.Tensor


@dataclass(frozen=True)
class FoldScales(Pass):
    """linear(x, w, b) * c  →  linear(x, w * c, b * c), for a number c; the same for division.

    Leaves: a product that others use too; a weight that others use too (there would be two of it).
    """

    stage: ClassVar[Stage] = Stage.FUSE

    def run(self, program: Program) -> int:
        count = 0
        for node in list(program.graph.nodes):
            found = _scaled_linear(node)
            if found is None:
                continue
            linear, factor = found
            reason = _problem(program, linear)
            if reason:
                self.miss(f"'{node.name}': {reason}")
                continue
            if not self.allowed():
                break
            parameters = [
                None if p is None else _scaled(program, p, node.target, factor)
                for p in linear.args[1:]
            ]
            linear.args = (linear.args[0], *parameters)
            program.replace(node, linear)
            count += 1
        return count


def _scaled_linear(node: fx.Node) -> tuple[fx.Node, float] | None:
    if node.target not in (_MUL, _DIV):
        return None
    left, right = node.args[:2]
    if node.target is _MUL and is_number(left):
        left, right = right, left
    if not isinstance(left, fx.Node) or left.target is not aten.linear.default:
        return None
    return (left, right) if is_number(right) else None  # type: ignore[return-value]


def _problem(program: Program, linear: fx.Node) -> str | None:
    if len(linear.users) > 1:
        return f"'{linear.name}' has {len(linear.users)} users."
    for parameter in linear.args[1:]:
        if parameter is not None and program.weight_of(parameter) is None:
            return f"its parameter '{parameter}' is computed."
        if isinstance(parameter, fx.Node) and len(parameter.users) > 1:
            return f"its weight '{parameter.name}' has {len(parameter.users)} users."
    return None


def _scaled(program: Program, parameter: Any, target: Any, factor: float) -> fx.Node:
    weight = program.weight_of(parameter)
    assert weight is not None
    return program.add_weight(f"{parameter.target}_scaled", Expression.of(target, weight, factor))
