"""Rows taken and put by a condition that is always the same: all of them, or none."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from graphwright.ir.layout import size_of
from graphwright.ir.program import Program
from graphwright.ir.weights import ConstantTensor
from graphwright.passes.drop_no_ops import same_kind

__all__ = ["settle_conditions"]

aten = torch.ops.aten


def settle_conditions(program: Program) -> int:
    """x[condition] → x and index_put(x, [condition], y) → y where a constant is true for every row;
    index_put(x, [condition], y) → x where it is true for none.

    A batch of one whose rows are taken by what they are, as a language, is such a case. Returns how
    many nodes were replaced; one that puts some rows only is left.
    """
    count = 0
    for node in list(program.graph.nodes):
        taken = _all_or_none(program, node)
        if taken is None:
            continue
        if node.target is aten.index.Tensor:
            if taken:
                source: Any = node.args[0]
                program.replace(node, source)
                _infer_behind(program, source)
                count += 1
            continue
        result: Any = node.args[2] if taken else node.args[0]
        if same_kind(result.meta["val"], node.meta["val"]):
            program.replace(node, result)
            count += 1
    if count:
        program.drop_dead()
    return count


def _all_or_none(program: Program, node: fx.Node) -> bool | None:
    """Does `node` take or put all rows of the first axis (True), or none of them (False), by a
    constant condition? None for anything else."""
    if node.target is aten.index_put.default:
        if len(node.args) > 3 and node.args[3]:
            return None  # adds to what is there
    elif node.target is not aten.index.Tensor:
        return None
    source: Any = node.args[0]
    indices: Any = node.args[1]
    condition = program.weight_of(indices[0]) if len(indices) == 1 else None
    if not isinstance(condition, ConstantTensor) or condition.dtype is not torch.bool:
        return None
    rows = size_of(source.meta["val"].shape[0]) if source.meta["val"].dim() else 0
    if condition.shape != (rows,) or len(set(condition.tensor.tolist())) != 1:
        return None
    return bool(condition.tensor.all())


def _infer_behind(program: Program, source: fx.Node) -> None:
    """Computes anew the values of what comes from `source`, of which there may be more rows."""
    changed = {source}
    for node in program.graph.nodes:
        if node.op == "call_function" and any(each in changed for each in node.all_input_nodes):
            before = node.meta["val"]
            program.infer(node)
            if not _same(before, node.meta["val"]):
                changed.add(node)


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return same_kind(one, other)
    return False
