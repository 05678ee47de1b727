"""Projections whose parts are interleaved head by head, reordered: each part contiguous."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from graphwright.ir.layout import is_view, row_axis
from graphwright.ir.program import Program
from graphwright.ir.weights import Expression
from graphwright.passes.base import Exactness, Pass, Stage

__all__ = ["ReorderProjections"]

aten = torch.ops.aten
_CUTS = frozenset({aten.slice.Tensor, aten.select.int})


@dataclass(frozen=True)
class ReorderProjections(Pass):
    """cuts of reshape(linear(x, w))  →  contiguous slices of linear(x, rows of w in their order).

    For weights that keep query, key and value of one head together: their cuts are copies, those of
    the reordered product are free views. Rows that no cut reads are dropped. Leaves: a product that
    is also read whole; cuts that overlap; a shared or computed weight.
    """

    stage: ClassVar[Stage] = Stage.FUSE
    # BLAS sums rows at the edge of its tiles in another order than those within
    exactness: ClassVar[Exactness] = Exactness.REASSOCIATING

    def run(self, program: Program) -> int:
        count = 0
        for node in list(program.graph.nodes):
            if node.target is not aten.linear.default:
                continue
            cuts = list(_cuts(node))
            if all(is_view(cut) for cut in cuts if cut.target in _CUTS):
                continue
            reason = _cut_problem(cuts) or _parameter_problem(program, node)
            rows = [] if reason else [_channels(node, cut) for cut in cuts]
            if rows and len(torch.cat(rows).unique()) != sum(len(part) for part in rows):
                reason = "its cuts overlap."
            if reason:
                self.miss(f"'{node.name}': {reason}")
                continue
            if not self.allowed():
                break
            _reorder(program, node, cuts, rows)
            count += 1
        return count


def _cuts(node: fx.Node) -> Iterator[fx.Node]:
    """What reads `node` or a free reshape of it: slices and selects, and whatever else."""
    for user in node.users:
        if is_view(user) and user.target not in _CUTS:
            yield from _cuts(user)
        else:
            yield user


def _channels(linear: fx.Node, cut: fx.Node) -> torch.Tensor:
    """Which outputs of `linear` the cut takes, in its order: its views, run on their numbers."""
    chain: list[fx.Node] = [cut]
    while chain[-1] is not linear:
        chain.append(chain[-1].args[0])  # type: ignore[arg-type]
    shape = [1 if isinstance(size, torch.SymInt) else size for size in linear.meta["val"].shape]
    values = torch.arange(shape[-1]).reshape(shape)
    for node in reversed(chain[:-1]):
        assert callable(node.target)
        values = node.target(values, *node.args[1:], **node.kwargs)
    return values.flatten()


def _cut_problem(cuts: list[fx.Node]) -> str | None:
    for cut in cuts:
        if cut.target not in _CUTS:
            return f"'{cut.name}' reads its whole result."
        axis: Any = cut.args[1]
        source: Any = cut.args[0]
        inner = row_axis(source.meta["val"])
        if inner is None or axis % source.meta["val"].dim() <= inner:
            return f"'{cut.name}' cuts the tokens."
        if len(cut.all_input_nodes) > 1:
            return f"'{cut.name}' cuts at a computed size."
    return None


def _parameter_problem(program: Program, linear: fx.Node) -> str | None:
    for parameter in linear.args[1:]:
        if parameter is None:
            continue
        if program.weight_of(parameter) is None or len(parameter.users) > 1:  # type: ignore[union-attr]
            return f"its parameter '{parameter}' is computed or shared."
    return None


def _reorder(
    program: Program, linear: fx.Node, cuts: list[fx.Node], rows: list[torch.Tensor]
) -> None:
    order = torch.cat(rows)
    parameters = []
    for parameter in linear.args[1:]:
        weight = program.weight_of(parameter)
        if isinstance(parameter, fx.Node) and weight is not None:
            chosen = Expression.of(aten.index_select.default, weight, 0, order.to(torch.int64))
            parameter = program.add_weight(f"{parameter.target}_reordered", chosen)
        parameters.append(parameter)
    product = program.call(linear, aten.linear.default, linear.args[0], *parameters)
    product.meta["stack_trace"] = linear.meta.get("stack_trace", "")
    start = 0
    for cut, part in zip(cuts, rows, strict=True):
        piece = program.call(linear, aten.slice.Tensor, product, -1, start, start + len(part))
        shape = cut.meta["val"].shape
        sizes = [-1 if isinstance(size, torch.SymInt) else size for size in shape]
        cut.replace_all_uses_with(program.call(linear, aten.reshape.default, piece, sizes))
        start += len(part)
