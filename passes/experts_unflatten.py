"""Pairs of token and slot: values laid out as one axis of T·S get a token axis and a slot axis.

A router gives each token S slots, and models often lay out what happens there as T·S rows. With
both axes apart, every value has one row a token again, and slots are an axis like any other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from graphwright.ir.layout import row_axis, size_of
from graphwright.ir.levels import POINTWISE
from graphwright.ir.program import Program
from graphwright.passes.content_free import content_free_nodes, evaluate

__all__ = ["unflatten_pairs"]

aten, gw = torch.ops.aten, torch.ops.gw
_PROBED = (3, 7)  # numbers of tokens for which an index of rows is evaluated


class _CannotError(Exception):
    """Why a value of pairs cannot be taken apart."""


def unflatten_pairs(program: Program, miss: Callable[[str], None]) -> int:
    """Rewrites values [T·S, ...] as [T, S, ...] wherever they come from and end in values [T, ...].

    Returns how many values [T, ...] are now computed without such rows. `miss` gets the reasons why
    a value was left as it is.
    """
    apart = _Apart(program)
    count = 0
    for node in list(program.graph.nodes):
        if node.op != "call_function" or not isinstance(node.meta.get("val"), torch.Tensor):
            continue
        try:
            if apart.slots(node) is not None:
                apart.add(node)
            elif any(source in apart.values for source in node.all_input_nodes):
                program.replace(node, apart.back(node))
                count += 1
        except _CannotError as reason:
            miss(f"'{node.name}' {reason}.")
    for made in reversed(apart.made):
        if not made.users:
            program.graph.erase_node(made)
    return count


class _Apart:
    """The values of pairs that have been taken apart so far."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.tokens = size_of(program.placeholder("tokens").meta["val"].shape[0])
        self.values: dict[fx.Node, fx.Node] = {}
        self.made: list[fx.Node] = []
        self._free: set[fx.Node] | None = None

    def slots(self, node: fx.Node) -> int | None:
        """S, when the first axis of `node` counts T·S pairs."""
        value: Any = node.meta["val"]
        if not isinstance(value, torch.Tensor) or not value.dim():
            return None
        ratio = size_of(value.shape[0]) / self.tokens
        whole = getattr(ratio, "is_Integer", False) and ratio > 1
        known = all(isinstance(size, int) for size in value.shape[1:])
        return int(ratio) if whole and known else None

    def add(self, node: fx.Node) -> None:
        """Makes the value of `node`, [T·S, ...], as [T, S, ...]. Raises _CannotError."""
        rule = _RULES.get(node.target)
        name = str(node.target).removeprefix("aten.")
        if rule is None and name not in POINTWISE:
            raise _CannotError(f"is {node.target} over pairs of token and slot")
        new = (rule or _pointwise)(self, node)
        value = new.meta["val"]
        want = [self.tokens, self.slots(node), *map(size_of, node.meta["val"].shape[1:])]
        if [size_of(size) for size in value.shape] != want:
            raise _CannotError(f"came apart as {tuple(value.shape)}, not as {want}")
        new.meta["stack_trace"] = node.meta.get("stack_trace", "")
        self.values[node] = new

    def back(self, node: fx.Node) -> fx.Node:
        """A reshape of pairs to rows of tokens, made from the value that is apart."""
        source: Any = node.args[0]
        value = node.meta["val"]
        axis = row_axis(value)
        if node.target is not aten.reshape.default:
            raise _CannotError(f"is {node.target}, which mixes pairs of token and slot")
        if axis is None or size_of(value.shape[axis]) != self.tokens:
            raise _CannotError(f"reshapes pairs to {tuple(value.shape)}")
        sizes = [-1 if i == axis else int(size) for i, size in enumerate(value.shape)]
        return self.call(node, aten.reshape.default, self.values[source], sizes)

    def call(self, node: fx.Node, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        """A call in front of `node`."""
        self.made.append(self.program.call(node, target, *args, **kwargs))
        return self.made[-1]

    def mapped(self, node: fx.Node) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of `node` with pairs apart; no other argument may depend on the length."""
        for source in node.all_input_nodes:
            if source not in self.values and self._has_symbol(source):
                raise _CannotError(f"combines pairs with '{source.name}'")
        swap = self.values
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: swap.get(n, n))
        return args, kwargs

    def _has_symbol(self, node: fx.Node) -> bool:
        value: Any = node.meta["val"]
        if not isinstance(value, torch.Tensor):
            return True
        return any(isinstance(size, torch.SymInt) for size in value.shape)

    def counts_slots(self, index: fx.Node, slots: int) -> bool:
        """Is `index` [T·S] the token of each pair, 0 0 1 1 2 2 … for two slots?"""
        if self._free is None:
            self._free = content_free_nodes(self.program)
        if index not in self._free:
            return False
        return all(
            torch.equal(
                evaluate(self.program, [index], tokens)[index],
                torch.arange(tokens * slots) // slots,
            )
            for tokens in _PROBED
        )


def _rank(node: fx.Node) -> int:
    return int(node.meta["val"].dim())


def _pointwise(apart: _Apart, node: fx.Node) -> fx.Node:
    args, kwargs = apart.mapped(node)
    for source in node.all_input_nodes:
        if source in apart.values and _rank(source) != _rank(node):
            raise _CannotError(f"broadcasts '{source.name}'")
    return apart.call(node, node.target, *args, **kwargs)


def _reshape(apart: _Apart, node: fx.Node) -> fx.Node:
    """Rows of tokens become pairs, or pairs stay pairs."""
    source: Any = node.args[0]
    sizes = [-1, apart.slots(node), *(int(size) for size in node.meta["val"].shape[1:])]
    if source in apart.values:
        return apart.call(node, aten.reshape.default, apart.values[source], sizes)
    value = source.meta["val"]
    axis = row_axis(value)
    if axis is None or size_of(value.shape[axis]) != apart.tokens:
        raise _CannotError(f"makes pairs of '{source.name}' {tuple(value.shape)}")
    return apart.call(node, aten.reshape.default, source, sizes)


def _repeat_interleave(apart: _Apart, node: fx.Node) -> fx.Node:
    source, repeats = node.args[:2]
    dim = node.args[2] if len(node.args) > 2 else node.kwargs.get("dim")
    if dim not in (0, -_rank(node)) or repeats != apart.slots(node):
        raise _CannotError("repeats something else than tokens")
    return _shared_row(apart, node, source)  # type: ignore[arg-type]


def _shared_row(apart: _Apart, node: fx.Node, source: fx.Node) -> fx.Node:
    """Each token's row of `source` [T, ...] for all its slots."""
    if size_of(source.meta["val"].shape[0]) != apart.tokens:
        raise _CannotError(f"repeats rows of '{source.name}' {tuple(source.meta['val'].shape)}")
    wide = apart.call(node, aten.unsqueeze.default, source, 1)
    sizes = [-1, apart.slots(node), *[-1] * (_rank(source) - 1)]
    return apart.call(node, aten.expand.default, wide, sizes)


def _index(apart: _Apart, node: fx.Node) -> fx.Node:
    """A table read by each pair, or each pair's token's row."""
    source, indices = node.args[:2]
    assert isinstance(source, fx.Node) and isinstance(indices, (list, tuple))
    index = indices[0]
    if not isinstance(index, fx.Node) or any(other is not None for other in indices[1:]):
        raise _CannotError("indexes more than the first axis")
    slots = apart.slots(node)
    assert slots is not None
    if index in apart.values and not apart._has_symbol(source):
        return apart.call(node, aten.index.Tensor, source, [apart.values[index]])
    if index.meta["val"].dim() == 1 and apart.counts_slots(index, slots):
        return _shared_row(apart, node, source)
    raise _CannotError(f"takes rows of '{source.name}' by '{index.name}'")


def _index_select(apart: _Apart, node: fx.Node) -> fx.Node:
    source, dim, index = node.args[:3]
    if dim != 0 or index not in apart.values or apart._has_symbol(source):  # type: ignore[arg-type]
        raise _CannotError("chooses among pairs")
    return apart.call(node, aten.index.Tensor, source, [apart.values[index]])  # type: ignore[index]


def _embedding(apart: _Apart, node: fx.Node) -> fx.Node:
    table, index = node.args[:2]
    if index not in apart.values:
        raise _CannotError("looks up a table of pairs")
    return apart.call(node, aten.embedding.default, table, apart.values[index])  # type: ignore[index]


def _product(apart: _Apart, node: fx.Node) -> fx.Node:
    """bmm and matmul of pairs' own matrices."""
    args, _ = apart.mapped(node)
    if any(_rank(source) < 3 for source in node.all_input_nodes if source in apart.values):
        raise _CannotError("multiplies the pairs of a step with each other")
    return apart.call(node, aten.matmul.default, *args)


def _routed(apart: _Apart, node: fx.Node) -> fx.Node:
    """A product by experts with one slot for each pair."""
    (x, experts, *weights), _ = apart.mapped(node)
    if experts.meta["val"].dim() != 3 or node.args[1].meta["val"].shape[1] != 1:  # type: ignore[union-attr]
        raise _CannotError("routes pairs to several experts each")
    rows = apart.call(node, aten.squeeze.dim, x, 2) if _rank(x) == 4 else x
    slots = apart.call(node, aten.squeeze.dim, experts, 2)
    result = apart.call(node, node.target, rows, slots, *weights)
    return apart.call(node, aten.unsqueeze.default, result, 2)


def _linear(apart: _Apart, node: fx.Node) -> fx.Node:
    args, kwargs = apart.mapped(node)
    if node.args[0] not in apart.values or _rank(node.args[0]) < 2:  # type: ignore[arg-type]
        raise _CannotError("is a product with pairs as a weight")
    return apart.call(node, node.target, *args, **kwargs)


def _norm(apart: _Apart, node: fx.Node) -> fx.Node:
    args, kwargs = apart.mapped(node)
    if len(node.args[1]) >= _rank(node):  # type: ignore[arg-type]
        raise _CannotError("normalizes over pairs")
    return apart.call(node, node.target, *args, **kwargs)


def _along(position: int, extra: int = 0) -> Callable[[_Apart, fx.Node], fx.Node]:
    """Ops with the axis, or axes, they work on at argument `position`."""

    def rule(apart: _Apart, node: fx.Node) -> fx.Node:
        args, kwargs = apart.mapped(node)
        first: Any = node.args[0][0] if isinstance(node.args[0], (list, tuple)) else node.args[0]
        rank = _rank(first) + extra
        given: Any = args[position] if len(args) > position else kwargs.get("dim", 0)
        axes = [
            int(axis) % rank for axis in (given if isinstance(given, (list, tuple)) else [given])
        ]
        if 0 in axes or not axes:
            raise _CannotError("works along the pairs of a step")
        moved = [axis + 1 for axis in axes]
        dim = moved if isinstance(given, (list, tuple)) else moved[0]
        kept = {key: value for key, value in kwargs.items() if key != "dim"}
        args = (*args[:position], dim, *args[position + 1 :])
        return apart.call(node, node.target, *args, **kept)

    return rule


def _permute(apart: _Apart, node: fx.Node) -> fx.Node:
    dims = [int(dim) % _rank(node) for dim in node.args[1]]  # type: ignore[union-attr, arg-type]
    if dims[0] != 0:
        raise _CannotError("moves the axis of pairs")
    (source, _), _ = apart.mapped(node)
    return apart.call(node, aten.permute.default, source, [0, *(dim + 1 for dim in dims)])


def _expand(apart: _Apart, node: fx.Node) -> fx.Node:
    (source, sizes), _ = apart.mapped(node)
    if node.args[0] not in apart.values or len(sizes) != _rank(node.args[0]):  # type: ignore[arg-type]
        raise _CannotError("repeats pairs")
    return apart.call(node, aten.expand.default, source, [-1, -1, *sizes[1:]])


_RULES: dict[Any, Callable[[_Apart, fx.Node], fx.Node]] = {
    aten.reshape.default: _reshape,
    aten.repeat_interleave.self_int: _repeat_interleave,
    aten.index.Tensor: _index,
    aten.index_select.default: _index_select,
    aten.embedding.default: _embedding,
    aten.bmm.default: _product,
    aten.matmul.default: _product,
    aten.linear.default: _linear,
    gw.routed_linear.default: _routed,
    aten.layer_norm.default: _norm,
    aten.rms_norm.default: _norm,
    aten.unsqueeze.default: _along(1, extra=1),
    aten.squeeze.dim: _along(1),
    aten.squeeze.dims: _along(1),
    aten.slice.Tensor: _along(1),
    aten.select.int: _along(1),
    aten.softmax.int: _along(1),
    aten.flip.default: _along(1),
    aten.cat.default: _along(1),
    aten.stack.default: _along(1, extra=1),
    aten.mean.dim: _along(1),
    aten.sum.dim_IntList: _along(1),
    aten.amax.default: _along(1),
    aten.amin.default: _along(1),
    aten.permute.default: _permute,
    aten.expand.default: _expand,
}  # fmt: skip
