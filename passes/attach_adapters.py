"""Adapters that sequences choose: products of low rank beside those of the model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from graphwright.ir.adapters import ADAPTERS, LowRank, adapted_leaves, without_adapters
from graphwright.ir.errors import PassError
from graphwright.ir.layout import row_axis
from graphwright.ir.program import Program
from graphwright.ir.source import source_line
from graphwright.ir.weights import Expression, Weight
from graphwright.passes.adapted_rows import AdaptedRows, adapted_rows
from graphwright.passes.base import Pass, Stage
from graphwright.passes.fold_scales import FoldScales
from graphwright.passes.merge_projections import MergeProjections
from graphwright.passes.reorder_projections import ReorderProjections

__all__ = ["AttachAdapters"]

aten, gw = torch.ops.aten, torch.ops.gw


@dataclass(frozen=True)
class AttachAdapters(Pass):
    """y = linear(x, w, b), where adapters change w  →
    routed_linear(routed_linear(x, adapters, A), adapters, B, residual=y),
    and so y + r, where that is all that reads y.

    New inputs: adapters, of tokens, and row_adapters, of sampled rows. y is computed as without
    adapters, and what they add is added to it, in its place (ir/memory.py): a token without one
    keeps its bits. A product that was merged of several gets one A, with the ranks of all one below
    the other, and one B, which is zero outside the rows of each. Ranks are padded to the largest.
    Scales are in B, which is kept in float32 where its own type cannot express that. Leaves:
    products that no adapter changes. Refuses: adapted weights that anything else reads.
    """

    stage: ClassVar[Stage] = Stage.FUSE
    after: ClassVar[tuple[type[Pass], ...]] = (FoldScales, ReorderProjections, MergeProjections)
    optional: ClassVar[bool] = False

    def run(self, program: Program) -> int:
        if not program.adapters:
            return 0
        inputs: dict[str, fx.Node] = {}
        count = 0
        for source in [node for node in program.graph.nodes if node.op == "get_attr"]:
            weight = program.weight_of(source)
            if weight is None or not adapted_leaves(weight):
                continue
            for node in list(source.users):
                if node.target is not aten.linear.default or node.args[1] is not source:
                    raise PassError(
                        f"'{node.name}'{source_line(node)} reads the weight '{source.target}', "
                        "which an adapter changes, and is no matrix product with it: merge the "
                        "adapter with --lora, into a file of its own."
                    )
                _attach(program, node, weight, inputs)
                count += 1
            program.weights[str(source.target)] = without_adapters(weight)
        return count


def _attach(program: Program, node: fx.Node, weight: Weight, inputs: dict[str, fx.Node]) -> None:
    x: Any = node.args[0]
    value, result = x.meta["val"], node.meta["val"]
    axis = row_axis(value)
    if axis is None or axis != value.dim() - 2:
        raise PassError(
            f"the input '{x.name}' {list(value.shape)} of '{node.name}', whose weight an adapter "
            "changes, is not one row a token: merge the adapter with --lora, into a file of its "
            "own."
        )
    chosen = _chosen(program, str(value.shape[axis]), inputs)
    name = str(node.args[1].target)  # type: ignore[union-attr]
    a, b = (
        program.add_weight(f"{name}_lora_{letter}", each)
        for letter, each in zip("AB", _stacks(weight, len(program.adapters)), strict=True)
    )
    outputs, target = int(result.shape[-1]), _sum_of(node) or node
    before, users = target.next, list(target.users)
    rows = x if axis == 0 else program.call(before, aten.reshape.default, x, [-1, value.shape[-1]])
    down = program.call(before, gw.routed_linear.default, rows, chosen, a, optional=True)
    base = program.call(before, aten.reshape.default, target, [-1, 1, outputs])
    up = program.call(before, gw.routed_linear.default, down, chosen, b, None, base, optional=True)
    total = program.call(before, aten.reshape.default, up, [*[1] * axis, -1, outputs])
    for each in (down, up):
        each.meta["stack_trace"] = node.meta.get("stack_trace", "")
    for user in users:
        user.replace_input_with(target, total)


def _sum_of(node: fx.Node) -> fx.Node | None:
    """The sum that is all that reads `node`, if a linear's epilogue could be it."""
    (user, *others) = node.users
    if others or user.target is not aten.add.Tensor or user.kwargs.get("alpha", 1) != 1:
        return None
    summand = user.args[1] if user.args[0] is node else user.args[0]
    if not isinstance(summand, fx.Node) or summand is node or summand.op == "get_attr":
        return None
    total = user.meta["val"]
    values = [each.meta["val"] for each in (node, summand)]
    alike = all(each.shape == total.shape and each.dtype == total.dtype for each in values)
    return user if alike else None


def _chosen(program: Program, size: str, inputs: dict[str, fx.Node]) -> fx.Node:
    """The input that says which adapter each of so many rows has."""
    dimension = program.dims[size]
    if dimension not in inputs:
        name = {"T": "adapters", "R": "row_adapters"}[dimension]
        inputs[dimension] = program.add_input(name, [dimension, 1], torch.int64)
    return inputs[dimension]


def _stacks(weight: Weight, adapters: int) -> tuple[Weight, Weight]:
    """A [adapters, ranks, inputs] and B [adapters, outputs, ranks] of a product by `weight`."""
    parts = [part for part in adapted_rows(weight) if any(part.leaf.changes)]
    ranks = [max(each.rank for each in part.leaf.changes if each) for part in parts]
    outputs, inputs = weight.shape
    down: list[list[Weight | None]] = []
    up: list[list[Weight | None]] = []
    scales: list[list[float]] = []
    for number in range(adapters):
        own = [part.leaf.changes[number] for part in parts]
        down.append([None if each is None else each.a for each in own])
        up.append([_rows(part, each, outputs) for part, each in zip(parts, own, strict=True)])
        scales.append([
            each.scale * part.factor if each else 1.0 for part, each in zip(parts, own, strict=True)
        ])  # fmt: skip
    dtype = _common([each.dtype for row in down for each in row if each is not None])
    a = _Factors.of(_stack_a, down, ranks=ranks, inputs=inputs, dtype=dtype)
    dtype = _common([each.dtype for row in up for each in row if each is not None])
    if not _exact(up, scales, dtype):
        dtype = torch.float32
    b = _Factors.of(_stack_b, up, ranks=ranks, outputs=outputs, scales=scales, dtype=dtype)
    return a, b


@dataclass(frozen=True, eq=False)
class _Factors(Expression):
    """Those of all adapters for one product."""

    @property
    def scheme(self) -> str:
        return ADAPTERS

    @staticmethod
    def of(function: Callable[..., Any], *args: Any, **kwargs: Any) -> _Factors:
        made = Expression.of(function, *args, **kwargs)
        return _Factors(made.shape, made.dtype, function, args, kwargs)


def _rows(part: AdaptedRows, change: LowRank | None, outputs: int) -> Weight | None:
    if change is None:
        return None
    rows = part.rows(change.b)
    if rows.shape != (outputs, change.rank):
        raise PassError(
            f"'{part.leaf.describe()}' became a part of a product with {outputs} outputs, and the "
            f"{change.rank} columns of its adapter {list(rows.shape)}: merge the adapter with "
            "--lora, into a file of its own."
        )
    return rows


def _common(types: list[torch.dtype]) -> torch.dtype:
    """The type of all of them, if it is one; else one that holds the values of each."""
    return types[0] if len(set(types)) == 1 else torch.float32


def _exact(up: list[list[Weight | None]], scales: list[list[float]], dtype: torch.dtype) -> bool:
    """Is every factor, times its scale, a number of this type?"""
    for row, numbers in zip(up, scales, strict=True):
        for each, scale in zip(row, numbers, strict=True):
            if each is None or scale == 1.0:
                continue
            scaled = each.load().float() * scale
            if not torch.equal(scaled.to(dtype).float(), scaled):
                return False
    return True


def _stack_a(
    down: list[list[torch.Tensor | None]], *, ranks: list[int], inputs: int, dtype: torch.dtype
) -> torch.Tensor:
    """[adapters, ranks, inputs]: the parts of each adapter one below the other, padded by zeros."""
    device = next(each.device for row in down for each in row if each is not None)
    made = torch.zeros(len(down), sum(ranks), inputs, dtype=dtype, device=device)
    for number, row in enumerate(down):
        start = 0
        for a, rank in zip(row, ranks, strict=True):
            if a is not None:
                made[number, start : start + a.shape[0]] = a.to(dtype)
            start += rank
    return made


def _stack_b(
    up: list[list[torch.Tensor | None]], *, ranks: list[int], outputs: int,
    scales: list[list[float]], dtype: torch.dtype,
) -> torch.Tensor:  # fmt: skip
    """[adapters, outputs, ranks]: the parts of each adapter side by side, each times its scale."""
    device = next(each.device for row in up for each in row if each is not None)
    made = torch.zeros(len(up), outputs, sum(ranks), dtype=dtype, device=device)
    for number, (row, numbers) in enumerate(zip(up, scales, strict=True)):
        start = 0
        for b, rank, scale in zip(row, ranks, numbers, strict=True):
            if b is not None:
                made[number, :, start : start + b.shape[1]] = (b.float() * scale).to(dtype)
            start += rank
    return made
