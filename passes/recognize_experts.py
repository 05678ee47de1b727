"""Experts: products by matrices that are chosen row by row become routed products."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from graphwright.ir.errors import PassError
from graphwright.ir.layout import size_of
from graphwright.ir.program import Program
from graphwright.passes.base import Pass, Stage
from graphwright.passes.canonicalize_ops import CanonicalizeOps
from graphwright.passes.eliminate_common_subexpressions import EliminateCommonSubexpressions
from graphwright.passes.experts_everywhere import route_chosen, turned_weight
from graphwright.passes.experts_unflatten import unflatten_pairs
from graphwright.passes.index_range import index_range
from graphwright.passes.layout_chains import arrange, trace
from graphwright.passes.pattern import Match, Rewrite, apply_rewrites

__all__ = ["RecognizeExperts"]

aten, gw = torch.ops.aten, torch.ops.gw


@dataclass(frozen=True)
class RecognizeExperts(Pass):
    """x · weight[experts]  →  gw.routed_linear(x, experts, weight), nothing gathered.

    A sum over all experts, whose scores are zero but for the chosen ones, is one over the chosen.
    Values laid out as T·S pairs of token and slot become [T, S, ...] first. A bias gathered by the
    same experts joins its product; Σ_s y[t, s] * w[t, s] becomes gw.weighted_sum. What happens
    between the products stays as it is. Leaves: products by matrices that are computed; pairs that
    end in anything but rows of tokens (the proof of token axes then refuses the program). Raises
    PassError for experts that may be out of range.
    """

    stage: ClassVar[Stage] = Stage.NORMALIZE
    after: ClassVar[tuple[type[Pass], ...]] = (CanonicalizeOps, EliminateCommonSubexpressions)
    optional: ClassVar[bool] = False

    def run(self, program: Program) -> int:
        """Counts values that lost their axis of pairs, routed products and sums."""
        turned: dict[str, fx.Node] = {}
        count = route_chosen(program, turned, self.miss)
        count += unflatten_pairs(program, self.miss)
        if count:
            program.drop_dead()
        routed = sum(_route(program, node, turned) for node in list(program.graph.nodes))
        if count or routed:
            program.drop_dead()
            CanonicalizeOps().run(program)
        products = [n for n in program.graph.nodes if n.target is gw.routed_linear.default]
        if products:
            routed += sum(_share_rows(program, node) for node in products)
            routed += apply_rewrites(self, program, (_BIAS, _WEIGHTED))
        if routed:
            CanonicalizeOps().run(program)
            EliminateCommonSubexpressions().run(program)
        _check_ranges(program)
        return count + routed


@dataclass(frozen=True)
class _Gathered:
    """`weight[experts]`, its two last axes swapped if `turned`."""

    weight: fx.Node
    experts: fx.Node
    turned: bool


def _route(program: Program, node: fx.Node, turned: dict[str, fx.Node]) -> int:
    """1 if `node`, a product of each slot's row with its expert's matrix, was replaced, else 0."""
    if node.target not in (aten.bmm.default, aten.matmul.default):
        return 0
    left, right = node.args[:2]
    assert isinstance(left, fx.Node) and isinstance(right, fx.Node)
    if (found := _gathered(program, left)) and _is_one(right, -1):
        x, unit, transposed = right, -1, found.turned
    elif (found := _gathered(program, right)) and _is_one(left, -2):
        x, unit, transposed = left, -2, not found.turned
    else:
        return 0
    experts, weight = found.experts, found.weight
    if experts.meta["val"].dim() == 1:
        experts = program.call(node, aten.unsqueeze.default, experts, 1)
    if transposed:
        weight = turned_weight(program, weight, turned)
    rows = _rows(program, node, x, unit)
    new = program.call(node, gw.routed_linear.default, rows, experts, weight)
    new.meta["stack_trace"] = node.meta.get("stack_trace", "")
    sizes = [s if isinstance(s, int) else -1 for s in node.meta["val"].shape]
    program.replace(node, program.call(node, aten.reshape.default, new, sizes))
    return 1


def _check_ranges(program: Program) -> None:
    """No step checks the experts it is given, so what they can be must be known now."""
    for node in program.graph.nodes:
        if node.target is not gw.routed_linear.default:
            continue
        experts, weight = node.args[1:3]
        bounds, count = index_range(program, experts), int(weight.meta["val"].shape[0])
        if bounds is None or bounds[0] < 0 or bounds[1] >= count:
            known = "any numbers" if bounds is None else f"{bounds[0]} to {bounds[1]}"
            raise PassError(
                f"node '{node.name}': its experts '{experts.name}' may be {known}, but its weight "
                f"holds {count}; expected places chosen by top-k, or clamped."
            )


def _is_one(node: fx.Node, axis: int) -> bool:
    return bool(size_of(node.meta["val"].shape[axis]) == 1)


def _gathered(program: Program, node: fx.Node) -> _Gathered | None:
    """Reads `node` as the matrices of each slot's expert; None if it is something else."""
    turned = False
    while node.target in (aten.permute.default, aten.reshape.default):
        source: Any = node.args[0]
        value, inner = node.meta["val"], source.meta["val"]
        if node.target is aten.permute.default:
            axes: Any = list(range(value.dim()))
            if list(node.args[1]) != [*axes[:-2], axes[-1], axes[-2]]:  # type: ignore[arg-type]
                return None
            turned = not turned
        elif not _merges_slots(value, inner) or turned:
            return None
        node = source
    if node.target is not aten.index.Tensor:
        return None
    table, indices = node.args
    weight = program.weight_of(table)
    assert isinstance(table, fx.Node) and isinstance(indices, (list, tuple))
    if weight is None or len(weight.shape) != 3 or len(indices) != 1:
        return None
    experts: Any = indices[0]
    value = experts.meta["val"]
    tokens = size_of(program.placeholder("tokens").meta["val"].shape[0])
    if value.dtype != torch.int64 or value.dim() not in (1, 2) or size_of(value.shape[0]) != tokens:
        return None
    return _Gathered(table, experts, turned)


def _merges_slots(value: torch.Tensor, inner: torch.Tensor) -> bool:
    """Is a reshape from `inner` to `value` one of nothing, or [T, S, N, K] → [T, S * N, K]?"""
    new, old = ([size_of(s) for s in tensor.shape] for tensor in (value, inner))
    merged = len(old) == 4 and [old[0], old[1] * old[2], old[3]]
    return new in (old, merged)


def _rows(program: Program, node: fx.Node, x: fx.Node, unit: int | None) -> fx.Node:
    """`x` without its axis `unit`, which is one: as [T, K] if all slots of a token read the same
    row, else as [T, S, K]."""
    chain = trace(x)
    axes = [
        axis for i, axis in enumerate(chain.axes) if unit is None or i != unit % len(chain.axes)
    ]
    shared = [axis for axis in axes[1:-1] if set(axis) <= chain.repeated]
    kept = [axis for axis in axes if axis not in shared]
    if not any(atom in chain.repeated for axis in kept for atom in axis):
        return arrange(program, node, chain.base, chain.base_axes, kept)
    if unit is None:
        return x
    return program.call(node, aten.squeeze.dim, x, unit)


def _share_rows(program: Program, node: fx.Node) -> int:
    """1 if `node` was given one row a token where it had the same one for each slot, else 0."""
    x: Any = node.args[0]
    if x.meta["val"].dim() == 2:
        return 0
    rows = _rows(program, node, x, None)
    if rows.meta["val"].dim() != 2:
        return 0
    node.args = (rows, *node.args[1:])
    return 1


def _add_bias(x: Any, experts: Any, weight: Any, bias: Any) -> Any:
    return aten.add.Tensor(
        gw.routed_linear.default(x, experts, weight), aten.index.Tensor(bias, [experts])
    )


def _is_bias(match: Match) -> str | None:
    bias = match["bias"]
    if bias.op != "get_attr" or bias.meta["val"].dim() != 2:
        return f"'{bias.name}' is no weight with a row for each expert."
    return None


def _sum_weighted(y: Any, weights: Any) -> Any:
    return aten.sum.dim_IntList(aten.mul.Tensor(y, weights), [-2])


def _is_weighted(match: Match) -> str | None:
    y, weights = match["y"], match["weights"]
    if not all(isinstance(item, fx.Node) for item in (y, weights)):
        return f"'{y}' or '{weights}' is a number."
    shape, other = ([size_of(s) for s in item.meta["val"].shape] for item in (y, weights))
    if len(shape) != 3 or other != [*shape[:2], 1] or isinstance(shape[0], int):
        return f"{other} is not one weight for each slot of {shape}."
    return None


_BIAS = Rewrite(
    _add_bias,
    lambda x, experts, weight, bias: gw.routed_linear.default(x, experts, weight, bias),
    _is_bias,
)
_WEIGHTED = Rewrite(
    _sum_weighted,
    lambda y, weights: gw.weighted_sum.default(y, aten.squeeze.dim(weights, -1)),
    _is_weighted,
)
