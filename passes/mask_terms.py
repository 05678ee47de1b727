"""A mask taken apart: what follows from positions alone, and what tokens choose."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from graphwright.ir import PassError, Program
from graphwright.ir.layout import size_of
from graphwright.ir.source import source_line
from graphwright.passes.layout_chains import is_layout_op
from graphwright.passes.mask_bias import HIDING, MaskTerm
from graphwright.passes.score_shapes import number_of

__all__ = ["over_pairs", "split_terms"]

aten, gw = torch.ops.aten, torch.ops.gw
_NOTS = {aten.bitwise_not.default, aten.logical_not.default}
_JOINS = {  # conditions that say of each part what they say themselves
    "keep": {aten.__and__.Tensor, aten.bitwise_and.Tensor, aten.logical_and.default},
    "hide": {aten.__or__.Tensor, aten.bitwise_or.Tensor, aten.logical_or.default},
}
_FILLS = {aten.masked_fill.Scalar, aten.masked_fill.Tensor}
_WHERES = {
    aten.where.self, aten.where.Scalar, aten.where.ScalarSelf, aten.where.ScalarOther,
}  # fmt: skip


def split_terms(
    program: Program, terms: Sequence[MaskTerm], content_free: set[fx.Node]
) -> tuple[list[MaskTerm], list[fx.Node]]:
    """(terms that follow from positions, the gw.mark_largest whose marks alone are visible).

    Conditions joined by and, or, not and fills that hide keys are taken apart. Raises PassError for
    a part that depends on the content of the tokens in any other way.
    """
    free: list[MaskTerm] = []
    marked: list[fx.Node] = []
    stack = [(term, term.node) for term in terms[::-1]]
    while stack:
        term, whole = stack.pop()
        if term.node in content_free:
            free.append(term)
        elif term.node.target is gw.mark_largest.default and term.kind == "keep":
            marked += [] if term.node in marked else [term.node]
        else:
            stack += [(part, whole) for part in _parts(program, term, whole)[::-1]]
    return free, marked


def _parts(program: Program, term: MaskTerm, whole: fx.Node) -> list[MaskTerm]:
    """Terms that together do what `term`, a part of the mask `whole`, does."""
    node, kind = term.node, term.kind
    first: Any = node.args[0] if node.args else None
    if is_layout_op(node) and over_pairs(node) and over_pairs(first) and not _turns_pairs(node):
        return [MaskTerm(kind, first, term.factor)]
    found = _of_condition(term) if kind != "add" else _of_sum(program, term)
    if found is None:
        raise PassError(
            f"the attention mask '{whole.name}' depends on the content of the tokens, not only on "
            f"their positions{source_line(whole)}."
        )
    return found


def _of_condition(term: MaskTerm) -> list[MaskTerm] | None:
    node: Any = term.node
    if node.target in _NOTS:
        return [MaskTerm("hide" if term.kind == "keep" else "keep", node.args[0])]
    if node.target in _JOINS[term.kind]:
        return [MaskTerm(term.kind, part) for part in node.args]
    return None


def _of_sum(program: Program, term: MaskTerm) -> list[MaskTerm] | None:
    """A sum, or a fill of hidden keys with something very low."""
    node: Any = term.node
    if node.target is aten.add.Tensor and not node.kwargs:
        return _added(node.args, term.factor)

    def hides(value: Any) -> bool:
        number = number_of(program, value)
        return number is not None and number * term.factor <= HIDING

    if node.target in _FILLS:
        rest, condition, fill = node.args[:3]
        kind = "hide"
    elif node.target in _WHERES:
        condition, rest, fill = node.args[:3]
        kind = "keep"
        if not hides(fill):
            kind, rest, fill = "hide", fill, rest
    else:
        return None
    more = _added([rest], term.factor)
    return None if more is None or not hides(fill) else [MaskTerm(kind, condition), *more]


def _added(parts: Sequence[Any], factor: float) -> list[MaskTerm] | None:
    """What is added by each; None where one is a number, which moves the scores."""
    if any(not isinstance(part, fx.Node) and part != 0 for part in parts):
        return None
    return [MaskTerm("add", part, factor) for part in parts if isinstance(part, fx.Node)]


def _turns_pairs(node: fx.Node) -> bool:
    """Does `node`, a layout op, put the last two axes elsewhere, as queries in place of keys?"""
    rank = node.meta["val"].dim()
    dims: Any = node.args[1] if node.target is aten.permute.default else node.args[1:3]
    if node.target is aten.permute.default:
        return [int(dim) % rank for dim in dims[-2:]] != [rank - 2, rank - 1]
    if node.target is aten.transpose.int:
        return any(int(dim) % rank >= rank - 2 for dim in dims)
    return node.target is aten.t.default


def over_pairs(node: Any) -> bool:
    """Has `node` a value for each query and key, those as its last two axes?"""
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    if not isinstance(value, torch.Tensor) or value.dim() < 2:
        return False
    rows, columns = value.shape[-2:]
    same = isinstance(rows, torch.SymInt) and size_of(rows) == size_of(columns)
    return same and all(isinstance(size, int) for size in value.shape[:-2])
