"""Which of a row are its largest, said by one op."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from graphwright.ir.layout import size_of
from graphwright.ir.program import Program
from graphwright.passes.base import Exactness, Pass, Stage
from graphwright.passes.canonical_numbers import fill_of
from graphwright.passes.fold_constants import FoldConstants

__all__ = ["MarkLargest"]

aten, gw = torch.ops.aten, torch.ops.gw
_SCATTERS = {aten.scatter.value, aten.scatter.src}
_FAR = 2**20  # a number of tokens beyond every k


@dataclass(frozen=True)
class MarkLargest(Pass):
    """scatter(full(c), -1, topk(x, min(k, T)).indices, d)  →  where(gw.mark_largest(x, k), d, c)
    over rows of T values x, one a token.

    Of equal values torch.topk takes any, gw.mark_largest those of lower index. Leaves: the
    smallest; another number than min(k, T); what is scattered into something that is not constant.
    """

    stage: ClassVar = Stage.NORMALIZE
    exactness: ClassVar = Exactness.EXACT
    after: ClassVar = (FoldConstants,)
    optional: ClassVar = False  # what is left of it is refused

    def run(self, program: Program) -> int:
        count = 0
        for node in list(program.graph.nodes):
            choice = _choice(node) if node.target in _SCATTERS else None
            if choice is None:
                continue
            reason = _not_ours(node, choice)
            if reason is not None:
                self.miss(f"'{node.name}' {reason}.")
                continue
            k = _count(choice)
            assert k is not None
            marked = program.call(node, gw.mark_largest.default, choice.args[0], k=k)
            program.replace(node, _written(program, node, marked))
            count += 1
        if count:
            program.drop_dead()
        return count


def _choice(node: fx.Node) -> fx.Node | None:
    """The topk over tokens whose indices `node`, a scatter, writes at."""
    index: Any = node.args[2]
    while isinstance(index, fx.Node) and index.target is aten._to_copy.default:
        index = index.args[0]
    if not isinstance(index, fx.Node) or index.target is not operator.getitem:
        return None
    choice, number = index.args
    if not isinstance(choice, fx.Node) or choice.target is not aten.topk.default or number != 1:
        return None
    x: Any = choice.args[0]
    return choice if isinstance(x.meta["val"].shape[-1], torch.SymInt) else None


def _not_ours(node: fx.Node, choice: fx.Node) -> str | None:
    """Why the scatter `node` of the places of `choice` does not mark the largest of each row."""
    base: Any = node.args[0]
    x: Any = choice.args[0]
    shapes = [[size_of(size) for size in each.meta["val"].shape] for each in (base, x)]
    dims = [_argument(choice, 2, "dim", -1), node.args[1]]
    if any(dim not in (-1, len(shape) - 1) for dim, shape in zip(dims, shapes, strict=True)):
        return "chooses along another axis than the last"
    if not _argument(choice, 3, "largest", True):
        return "marks the smallest of each row, not the largest"
    if shapes[0] != shapes[1]:
        return f"writes into {shapes[0]}, and the values to choose among are {shapes[1]}"
    if fill_of(base) is None or _value(node) is None or node.kwargs:
        return "writes something, or into something, that is not constant"
    if _count(choice) is None:
        return f"marks {size_of(choice.meta['val'][1].shape[-1])} of each row, not min(k, all)"
    return None


def _argument(node: fx.Node, position: int, name: str, default: Any) -> Any:
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def _value(node: fx.Node) -> Any:
    """The number that the scatter writes."""
    source = node.args[3]
    return fill_of(source) if isinstance(source, fx.Node) else source


def _count(choice: fx.Node) -> int | None:
    """k, where as many as min(k, T) are chosen; None where the number is another one."""
    x: Any = choice.args[0]
    size, tokens = (size_of(v.shape[-1]) for v in (choice.meta["val"][1], x.meta["val"]))
    if isinstance(size, int):
        return None  # topk itself fails for fewer tokens than that
    k = int(size.subs(tokens, _FAR))
    lengths = {1, 2, 3, k - 1, k, k + 1, 2 * k, _FAR} - {0}
    return k if all(size.subs(tokens, n) == min(k, n) for n in lengths) else None


def _written(program: Program, node: fx.Node, marked: fx.Node) -> fx.Node:
    """where(marked, what `node` writes, what it writes into)."""
    one, other, dtype = _value(node), fill_of(node.args[0]), node.meta["val"].dtype
    if dtype is torch.bool:
        if bool(one) == bool(other):
            return node.args[0]  # type: ignore[return-value]
        return marked if one else program.call(node, aten.bitwise_not.default, marked)
    if dtype.is_floating_point:
        one, other = float(one), float(other)
    chosen = program.call(node, aten.where.Scalar, marked, one, other)
    if chosen.meta["val"].dtype == dtype:
        return chosen
    return program.call(node, aten._to_copy.default, chosen, dtype=dtype)
