"""Bringing what regions store into rows: one row for each token, tokens in front."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from graphwright.ir import levels
from graphwright.ir.errors import PassError
from graphwright.ir.layout import row_axis
from graphwright.ir.program import Program
from graphwright.passes.region_module import source_line

__all__ = ["drop_symbolic_sizes", "is_reduction", "reduce_by_rows", "store_by_rows"]

aten = torch.ops.aten


def is_reduction(node: fx.Node) -> bool:
    """Does `node` reduce or normalize along an axis?"""
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
        return False
    return str(node.target).removeprefix("aten.") in levels.REDUCTION


def drop_symbolic_sizes(program: Program) -> None:
    """reshape(x, [1, size, 4])  →  reshape(x, [1, -1, 4]), and the same for expand.

    A symbolic size that an expand gives to an axis of size one stays.
    """
    for node in program.graph.nodes:
        if node.target not in (aten.reshape.default, aten.expand.default):
            continue
        shape = list(node.meta["val"].shape)
        before = list(node.args[0].meta["val"].shape)
        if not any(isinstance(size, fx.Node) for size in node.args[1]):
            continue
        if node.target is aten.reshape.default:
            symbolic = [size for size in shape if isinstance(size, torch.SymInt)]
            if len(symbolic) <= 1:
                sizes = [-1 if isinstance(size, torch.SymInt) else size for size in shape]
                node.args = (node.args[0], sizes, *node.args[2:])
        else:
            before = [1] * (len(shape) - len(before)) + before
            sizes = [
                -1 if isinstance(old, torch.SymInt) else given
                for old, given in zip(before, node.args[1], strict=True)
            ]
            node.args = (node.args[0], sizes, *node.args[2:])
    program.graph.eliminate_dead_code()


def reduce_by_rows(program: Program, node: fx.Node) -> None:
    """Makes `node` reduce the last axis of a value whose tokens are in front.

    Raises PassError when it reduces several axes or the tokens.
    """
    source: Any = node.args[0]
    value = source.meta["val"]
    position = [a.name for a in node.target._schema.arguments].index("dim")  # type: ignore[union-attr]
    given: Any = node.args[position] if len(node.args) > position else node.kwargs.get("dim")
    axes = [given] if isinstance(given, int) else list(given or range(value.dim()))
    axes = [axis % value.dim() for axis in axes]
    if len(axes) != 1:
        raise PassError(
            f"cannot be lowered: node '{node.name}' reduces the axes {axes} of "
            f"{list(value.shape)}; a region can reduce one{source_line(node)}."
        )
    tokens = _token_axis(source)
    if axes[0] == tokens:
        raise PassError(
            f"cannot be lowered: node '{node.name}' is {node.target} over the tokens of "
            f"{list(value.shape)}{source_line(node)}."
        )
    if axes[0] == value.dim() - 1 and row_axis(value) is not None:
        return
    rest = [axis for axis in range(value.dim()) if axis not in (tokens, axes[0])]
    order = [tokens, *rest, axes[0]]
    moved = program.call(node, aten.permute.default, source, order)
    arguments = list(node.args)
    arguments[0], arguments[position] = moved, -1 if isinstance(given, int) else [-1]
    reduced = program.call(node, node.target, *arguments, **node.kwargs)  # type: ignore[arg-type]
    if node.meta["val"].dim() < value.dim():
        order = [axis - (axis > axes[0]) for axis in order[:-1]]
    back = program.call(node, aten.permute.default, reduced, _inverse(order))
    program.replace(node, back)


def store_by_rows(program: Program, node: fx.Node) -> fx.Node:
    """The node to store in place of `node`: itself, or its permutation with the tokens in front.

    Users of `node` then read the permutation of that. Raises PassError when `node` has no row for
    each token, or is read by an op that is in no region and wants the other layout.
    """
    value = node.meta["val"]
    if row_axis(value) is not None:
        return node
    tokens = _token_axis(node)
    for user in node.users:
        if user.op != "call_function" or getattr(user.target, "namespace", "") != "aten":
            raise PassError(
                f"cannot be lowered: '{user.name}' reads node '{node.name}', whose shape "
                f"{list(value.shape)} has the tokens on axis {tokens}{source_line(node)}."
            )
    order = [tokens, *(axis for axis in range(value.dim()) if axis != tokens)]
    users = list(node.users)
    rows = program.call(node.next, aten.permute.default, node, order)
    back = program.call(rows.next, aten.permute.default, rows, _inverse(order))
    for user in users:
        user.replace_input_with(node, back)
    return rows


def _token_axis(node: fx.Node) -> int:
    value = node.meta["val"]
    symbolic = [i for i, size in enumerate(value.shape) if isinstance(size, torch.SymInt)]
    if len(symbolic) != 1:
        why = "mixes tokens" if symbolic else "does not depend on the tokens: it is no weight yet"
        raise PassError(
            f"cannot be lowered: node '{node.name}', {node.target} of shape {list(value.shape)}, "
            f"{why}{source_line(node)}."
        )
    return symbolic[0]


def _inverse(order: list[int]) -> list[int]:
    return sorted(range(len(order)), key=order.__getitem__)
