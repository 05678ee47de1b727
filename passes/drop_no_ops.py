"""Dropping what exporting leaves behind: assertions, copies, and ops that change nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from graphwright.ir.layout import size_of
from graphwright.ir.program import Program
from graphwright.passes.base import Exactness, Pass, Stage

__all__ = ["DropNoOps", "changes_nothing", "same_kind"]

aten = torch.ops.aten
_ASSERTIONS = frozenset(
    {
        "aten._assert_tensor_metadata",
        "aten._assert_scalar",
        "aten._assert_async",
        "aten._functional_assert_scalar",
        "aten._functional_assert_async",
        "aten.sym_constrain_range",
        "aten.sym_constrain_range_for_size",
    }
)
_LAYOUT_BOUND = (aten.view.default, aten._unsafe_view.default)


@dataclass(frozen=True)
class DropNoOps(Pass):
    """assertions → nothing; alias, clone, x + 0, x * 1, a full slice … → x; view → reshape.

    `view` becomes `reshape` here because it asks for a memory layout that a dropped copy made.
    Leaves: an op whose result has another shape or dtype than its input.
    """

    stage: ClassVar = Stage.NORMALIZE
    exactness: ClassVar = Exactness.EXACT
    optional: ClassVar = False

    def run(self, program: Program) -> int:
        """Counts dropped nodes, and views that became reshapes."""
        count = 0
        for node in list(program.graph.nodes):
            if node.op != "call_function":
                continue
            if node.target in _LAYOUT_BOUND:
                node.target = aten.reshape.default
                count += 1
            if _is_assertion(node) and not node.users:
                program.graph.erase_node(node)
                count += 1
            elif changes_nothing(node):
                program.replace(node, node.args[0])
                count += 1
        return count


def _is_assertion(node: fx.Node) -> bool:
    target = node.target
    return isinstance(target, torch._ops.OpOverload) and (
        str(target.overloadpacket).replace("::", ".") in _ASSERTIONS
    )


def same_kind(first: Any, second: Any) -> bool:
    """Have two values the same dtype and (symbolic) shape?"""
    if not (isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor)):
        return False
    if first.dtype != second.dtype or first.dim() != second.dim():
        return False
    return [size_of(s) for s in first.shape] == [size_of(s) for s in second.shape]


def changes_nothing(node: fx.Node) -> bool:
    """Is the value of `node` that of its first argument?"""
    check = _CHECKS.get(node.target)
    source = node.args[0] if node.args else None
    if check is None or not isinstance(source, fx.Node):
        return False
    return same_kind(source.meta["val"], node.meta["val"]) and check(node)


def _always(node: fx.Node) -> bool:
    return True


def _operand(number: int) -> Callable[[fx.Node], bool]:
    """Is the second operand the number that leaves the first as it is?"""

    def check(node: fx.Node) -> bool:
        operand = node.args[1]
        plain = isinstance(operand, (int, float)) and not isinstance(operand, bool)
        return bool(plain and operand == number and "rounding_mode" not in node.kwargs)

    return check


def _not_training(node: fx.Node) -> bool:
    rate, training = node.args[1:3]
    return bool(rate == 0 or training is False)


def _every_index(node: fx.Node) -> bool:
    start: Any = node.args[2] if len(node.args) > 2 else None
    step = node.args[4] if len(node.args) > 4 else 1
    return bool(start in (None, 0) and step == 1)  # and the shape is the same


def _ones(node: fx.Node) -> bool:
    counts: Any = node.args[1]
    return all(count == 1 for count in counts)


def _in_order(node: fx.Node) -> bool:
    dims: Any = node.args[1]
    return all(dim % len(dims) == i for i, dim in enumerate(dims))


_COPIES = (
    aten.alias.default, aten.clone.default, aten.contiguous.default, aten.detach.default,
    aten.lift_fresh_copy.default, aten._to_copy.default, aten.type_as.default,
    aten.to.dtype, aten.to.dtype_layout, aten.to.device, aten.to.other,
    aten.expand.default, aten.reshape.default, aten.flatten.using_ints, aten.squeeze.default,
    aten.squeeze.dim, aten.squeeze.dims,
)  # fmt: skip
_SUMS = (aten.add.Tensor, aten.add.Scalar, aten.sub.Tensor, aten.sub.Scalar)
_PRODUCTS = (aten.mul.Tensor, aten.mul.Scalar, aten.div.Tensor, aten.div.Scalar)
_CHECKS: dict[Any, Callable[[fx.Node], bool]] = {
    **dict.fromkeys(_COPIES, _always),
    **dict.fromkeys(_SUMS, _operand(0)),
    **dict.fromkeys((*_PRODUCTS, aten.pow.Tensor_Scalar), _operand(1)),
    aten.dropout.default: _not_training,
    aten.slice.Tensor: _every_index,
    aten.repeat.default: _ones,
    aten.permute.default: _in_order,
}
