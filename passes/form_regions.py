"""Everything that is no gw op and no free row view, gathered into regions of generated code."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from graphwright.ir import levels
from graphwright.ir.errors import PassError
from graphwright.ir.layout import is_view, row_axis, row_view, size_of
from graphwright.ir.op import is_gw_op
from graphwright.ir.program import Level, Program
from graphwright.passes.base import Pass, Stage
from graphwright.passes.fuse_embedding import FuseEmbedding
from graphwright.passes.fuse_linear import FuseLinear
from graphwright.passes.fuse_residual_norm import FuseResidualNorm
from graphwright.passes.region_layout import (
    drop_symbolic_sizes,
    is_reduction,
    reduce_by_rows,
    store_by_rows,
)
from graphwright.passes.region_module import insert_region, sort_graph, source_line

__all__ = ["FormRegions"]

aten = torch.ops.aten
_GATHERS = frozenset(
    {"embedding.default", "index.Tensor", "index_select.default", "gather.default"}
)
_SEVERAL_RESULTS = frozenset(
    "split.Tensor split_with_sizes.default chunk.default unbind.int".split()
)
_EXPRESSIBLE = (levels.POINTWISE | levels.SHAPE | levels.REDUCTION | _GATHERS) - _SEVERAL_RESULTS
# What an element may cost, in additions, and still be computed again for each of several readers.
_RECOMPUTED = 16
_DEAR = frozenset(
    "pow.Tensor_Tensor pow.Scalar exp.default log.default log2.default log1p.default sin.default "
    "cos.default tanh.default sigmoid.default erf.default silu.default gelu.default "
    "softplus.default elu.default mish.default".split()
)


@dataclass(frozen=True)
class FormRegions(Pass):
    """pointwise, shape, last-axis reduction and gather ops  →  calls of `region_N`.

    The rule. A region computes each element of its outputs from its inputs anew, so a value is
    *stored* (an output of a region, an input of the next) exactly if it is
    (1) read by something outside of regions: a gw op, the result, a free view that these read;
    (2) the result of a reduction, or what a reduction reads when others read it too;
    (3) read more than once and dear: its expression has a transcendental, or over 16 operations.
    All else is computed where it is needed, within the region of each stored value that needs it.

    Stored values of equal depth (longest path, counted in stored values and gw ops) with the same
    row count form one region, reductions apart from the rest. An edge between regions leads to a
    greater depth always, so the grouping closes no cycle. Free views of stored values stay outside.

    Boundaries are rows: a stored value whose token axis is not in front is stored permuted.
    Raises PassError for an op that no region can express, and for a value without a row per token.
    """

    stage: ClassVar[Stage] = Stage.FUSE
    after: ClassVar[tuple[type[Pass], ...]] = (FuseLinear, FuseEmbedding, FuseResidualNorm)
    reaches: ClassVar[Level | None] = Level.FUSED
    optional: ClassVar[bool] = False

    def run(self, program: Program) -> int:
        drop_symbolic_sizes(program)
        _check_expressible(program)
        for node in list(program.graph.nodes):
            if is_reduction(node):
                reduce_by_rows(program, node)
        stored = {store_by_rows(program, node) for node in _stored(program)}
        aliases = _aliases(program, stored)
        groups = _groups(program, stored, aliases)
        for outputs in groups:
            insert_region(program, outputs, stop=lambda n: n in aliases or n in stored)
        if groups:
            sort_graph(program)
        return len(groups)


def _is_candidate(node: fx.Node) -> bool:
    """Is `node` something a region could compute?"""
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
        return False
    return node.target.namespace == "aten" and node.target is not aten.sym_size.int


def _check_expressible(program: Program) -> None:
    bad = [n for n in program.graph.nodes if _is_candidate(n) and not _is_expressible(n)]
    if bad:
        kinds = ", ".join(sorted({str(node.target) for node in bad}))
        raise PassError(
            f"cannot be lowered: node '{bad[0].name}' is {bad[0].target}, which no region can "
            f"express{source_line(bad[0])}. Ops left over: {kinds}."
        )


def _is_expressible(node: fx.Node) -> bool:
    if str(node.target).removeprefix("aten.") not in _EXPRESSIBLE:
        return False
    if node.target is aten.index.Tensor:
        indices: Any = node.args[1]
        used = [i for i, index in enumerate(indices) if index is not None]
        if len(used) != 1 or indices[used[0]].meta["val"].dtype is torch.bool:
            return False
        return _is_counted(node.args[0], used[0])
    if node.target in (aten.index_select.default, aten.gather.default):
        return _is_counted(node.args[0], node.args[1])
    return node.target is not aten.embedding.default or _is_counted(node.args[0], 0)


def _is_counted(value: Any, axis: Any) -> bool:
    """Has this axis a size that is known, so that it does not hold the tokens?"""
    return isinstance(size_of(value.meta["val"].shape[axis]), int)


def _stored(program: Program) -> list[fx.Node]:
    """The candidates whose values must lie in memory, by the three clauses of the rule."""
    stored: dict[fx.Node, None] = {}
    outside: set[fx.Node] = set()
    for node in reversed(program.graph.nodes):
        if node.target is aten.sym_size.int or (_is_candidate(node) and node not in outside):
            continue
        if _is_candidate(node) and not (is_view(node) and _may_stay_view(program, node)):
            stored[node] = None
        else:
            outside.update(node.all_input_nodes)
    for node in program.graph.nodes:
        if is_reduction(node):
            stored[node] = None
            read = _through_views(node.args[0])
            if _is_candidate(read) and _readers(read) - {node}:
                stored[read] = None
    cost: dict[fx.Node, int] = {}
    for node in program.graph.nodes:
        if not _is_candidate(node):
            continue
        dear = str(node.target).removeprefix("aten.") in _DEAR
        own = 0 if is_view(node) else 1 + _RECOMPUTED * dear
        cost[node] = own + sum(cost[n] for n in _inner(node, stored))
        if cost[node] > _RECOMPUTED and own and len(_readers(node)) > 1:
            stored[node] = None
    return list(stored)


def _inner(node: fx.Node, stored: dict[fx.Node, None]) -> list[fx.Node]:
    return [n for n in node.all_input_nodes if _is_candidate(n) and n not in stored]


def _may_stay_view(program: Program, node: fx.Node) -> bool:
    """The result must be dense; any other free view is read as it is."""
    if node is not program.output:
        return True
    view = row_view(node)
    return view is not None and view.dense


def _through_views(node: Any) -> fx.Node:
    while is_view(node):
        node = node.args[0]
    found: fx.Node = node
    return found


def _readers(node: fx.Node) -> set[fx.Node]:
    """Who uses `node`, looking through free views of it."""
    found: set[fx.Node] = set()
    for user in node.users:
        found |= _readers(user) if is_view(user) else {user}
    return found


def _aliases(program: Program, stored: set[fx.Node]) -> set[fx.Node]:
    """The free views of what lies in memory."""
    found: set[fx.Node] = set()
    for node in program.graph.nodes:
        if _is_candidate(node) and node not in stored and is_view(node):
            source: Any = node.args[0]
            if not _is_candidate(source) or source in stored or source in found:
                found.add(node)
    return found


def _groups(program: Program, stored: set[fx.Node], aliases: set[fx.Node]) -> list[list[fx.Node]]:
    """The outputs of each region, in graph order."""
    depth: dict[fx.Node, int] = {}
    groups: dict[tuple[int, str, bool], list[fx.Node]] = defaultdict(list)
    for node in program.graph.nodes:
        above = max((depth[n] for n in node.all_input_nodes), default=0)
        depth[node] = above + (node in stored or is_gw_op(node.target))
        if node in stored:
            groups[depth[node], _row_count(program, node), is_reduction(node)].append(node)
    return list(groups.values())


def _row_count(program: Program, node: fx.Node) -> str:
    value = node.meta["val"]
    axis = row_axis(value)
    assert axis is not None
    symbol = str(value.shape[axis].node.expr)
    if symbol not in program.dims:
        raise PassError(
            f"cannot be lowered: node '{node.name}' has {symbol} rows, which is no number of "
            f"tokens{source_line(node)}."
        )
    return symbol
