"""The level verifier: a program only holds the ops of its level, and every node is typed."""

from __future__ import annotations

import functools
import math
import operator

import torch
from torch import fx

from graphwright.ir import levels
from graphwright.ir.errors import PassError
from graphwright.ir.layout import VIEW_OPS
from graphwright.ir.op import is_gw_op
from graphwright.ir.program import Level, Program
from graphwright.ir.source import source_line

__all__ = ["allowed_at", "verify_level"]

_NORMALIZED = (
    levels.POINTWISE | levels.SHAPE | levels.REDUCTION | levels.NORMALIZATION
    | levels.MATRIX | levels.INDEXING | levels.TOKEN_MIXING
)  # fmt: skip
# Arithmetic on sizes; it is gone when the cache is in, with the masks that it was for.
_SIZES = frozenset({
    operator.add, operator.sub, operator.mul, operator.floordiv, operator.mod, operator.neg,
    operator.truediv, operator.lt, operator.le, operator.gt, operator.ge, operator.eq,
    operator.ne, torch.sym_max, torch.sym_min, torch.sym_not, torch.sym_int, torch.sym_float,
    torch.sym_ite, math.ceil, math.floor, math.trunc,
})  # fmt: skip


@functools.cache
def allowed_at(level: Level, target: object) -> bool:
    """May a call of `target` stand in a program of `level`?"""
    if target is operator.getitem:
        return True
    if level is Level.CAPTURED:
        return callable(target)
    if is_gw_op(target):
        return True
    if level is Level.NORMALIZED and target in _SIZES:
        return True
    if not isinstance(target, torch._ops.OpOverload) or target.namespace != "aten":
        return False
    name = str(target).removeprefix("aten.")
    if level is Level.NORMALIZED:
        return name in _NORMALIZED
    if level < Level.PLANNED:
        return name in _NORMALIZED - levels.TOKEN_MIXING
    return target in VIEW_OPS


def verify_level(program: Program) -> None:
    """Raises PassError naming the first node that its level does not allow or that has no value.

    The nodes inside a region (a call_module) are checked by the region builder, not here.
    """
    for node in program.graph.nodes:
        if node.op == "output":
            continue
        if "val" not in node.meta:
            raise PassError(f"node '{node.name}' has no meta value.")
        if node.op == "get_attr" and node.target not in program.weights:
            raise PassError(f"node '{node.name}' reads '{node.target}', which is no weight.")
        if node.op == "call_method":
            raise PassError(f"node '{node.name}' calls a method, '{node.target}'.")
        if node.op == "call_module":
            inner = program.module.get_submodule(str(node.target))
            if not isinstance(inner, fx.GraphModule):
                raise PassError(f"node '{node.name}' calls '{node.target}', which is no region.")
        if node.op == "call_function" and not allowed_at(program.level, node.target):
            raise PassError(
                f"node '{node.name}' is {node.target}, which level "
                f"'{program.level.name.lower()}' does not allow{source_line(node)}."
            )
        if program.level > Level.CAPTURED and _is_complex(node.meta["val"]):
            raise PassError(
                f"node '{node.name}' holds complex numbers, whose real and imaginary parts could "
                f"not be told apart{source_line(node)}."
            )


def _is_complex(value: object) -> bool:
    return isinstance(value, torch.Tensor) and value.is_complex()
