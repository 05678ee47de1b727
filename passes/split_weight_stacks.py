"""Products with a stack of weight matrices become products with each of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from graphwright.ir import Program
from graphwright.ir.layout import size_of
from graphwright.ir.weights import Expression
from graphwright.passes.base import Pass, Stage
from graphwright.passes.insert_kv_cache import InsertKvCache
from graphwright.passes.recognize_experts import RecognizeExperts

__all__ = ["SplitWeightStacks"]

aten = torch.ops.aten
_PRODUCTS = frozenset({aten.bmm.default, aten.matmul.default})


@dataclass(frozen=True)
class SplitWeightStacks(Pass):
    """x [N, T, k] · W [N, k, n]  →  the N linears of x[i] by W[i], stacked,
    W [N, 1, m, k] · x [N, T, k, n]  →  the N linears of the columns of x[i] by W[i], stacked.

    So blocks on a diagonal, a matrix for each head, are weights like any others.
    Leaves: experts, which tokens are routed to; stacks of more than `most` matrices; products of
    two values.
    """

    stage: ClassVar[Stage] = Stage.FUSE
    after: ClassVar = (RecognizeExperts, InsertKvCache)

    most: int = 64

    def run(self, program: Program) -> int:
        rewrites = 0
        for node in list(program.graph.nodes):
            if node.target not in _PRODUCTS:
                continue
            left: Any = node.args[0]
            right: Any = node.args[1]
            columns = program.weight_of(left) is not None
            stack, x = (left, right) if columns else (right, left)
            if not self._is_stack(program, stack, x, columns) or not self.allowed():
                continue
            parts = [
                _product(program, node, stack, x, i, columns)
                for i in range(int(stack.meta["val"].shape[0]))
            ]
            new = program.call(node, aten.stack.default, parts, 0)
            new.meta["stack_trace"] = node.meta.get("stack_trace")
            program.replace(node, new)
            rewrites += 1
        program.drop_dead()
        return rewrites

    def _is_stack(self, program: Program, stack: fx.Node, x: fx.Node, columns: bool) -> bool:
        if program.weight_of(stack) is None:
            return False
        shape, other = stack.meta["val"].shape, [size_of(size) for size in x.meta["val"].shape]
        alike = len(shape) == (4 if columns else 3) and len(other) == len(shape)
        if not alike or (columns and shape[1] != 1) or other[0] != shape[0] or other[1] == 1:
            return False
        if shape[0] > self.most:
            self.miss(f"the stack '{stack.name}' has {shape[0]} matrices, more than {self.most}.")
            return False
        return True


def _product(
    program: Program, node: fx.Node, stack: fx.Node, x: fx.Node, number: int, columns: bool
) -> fx.Node:
    """The linear of entry `number`: [T, n], of columns [T, m, n]."""
    weight = program.weight_of(stack)
    assert weight is not None
    matrix = Expression.of(aten.select.int, weight, 0, number)
    if columns:
        matrix = Expression.of(aten.select.int, matrix, 0, 0)
    else:
        matrix = Expression.of(aten.permute.default, matrix, [1, 0])
    held = program.add_weight(f"{stack.target}_{number}", matrix)
    part = program.call(node, aten.select.int, x, 0, number)
    if not columns:
        return program.call(node, aten.linear.default, part, held)
    turned = program.call(node, aten.permute.default, part, [0, 2, 1])
    rows = program.call(node, aten.linear.default, turned, held)
    return program.call(node, aten.permute.default, rows, [0, 2, 1])
