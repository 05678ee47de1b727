"""Evaluating a mask for chosen query rows only: what makes long windows cheap to look at.

A mask over T tokens has T² entries, but its graph is almost always pointwise over broadcast rows
and columns. So everything with one token axis is computed in full, and everything with two
(queries, keys) only for the wanted rows of the first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from graphwright.ir import PassError, Program
from graphwright.ir.layout import size_of
from graphwright.ir.levels import POINTWISE
from graphwright.passes.content_free import concrete_shape, is_shape_only

__all__ = ["FULL_LENGTH", "RowEvaluator"]

aten = torch.ops.aten
FULL_LENGTH = 2**13  # tokens for which a mask may be computed in full: 64 MB of booleans
_CREATION = {aten.full.default, aten.ones.default, aten.zeros.default}
_LIKE = {
    aten.clone.default, aten.alias.default, aten.contiguous.default, aten.full_like.default,
    aten.zeros_like.default, aten.ones_like.default,
}  # fmt: skip


class _NeedsAllRowsError(Exception):
    """An op that cannot be computed for some rows only."""


class RowEvaluator:
    """Values of content-free nodes for `length` tokens at positions 0, 1, 2, …

    Matrices [..., T, T] are computed for query rows `rows` (sorted) only.
    """

    def __init__(self, program: Program, length: int, rows: torch.Tensor) -> None:
        self._program = program
        self._length = length
        self._rows = rows
        self._all = len(rows) == length
        self._values: dict[fx.Node, Any] = {}
        self._tokens = size_of(program.placeholder("tokens").meta["val"].shape[0])

    def matrix(self, node: fx.Node) -> torch.Tensor:
        """The value of `node`, [..., len(rows), length] or broadcastable to it."""
        if not self.by_rows(node):
            if self._length > FULL_LENGTH:
                raise PassError(
                    f"the mask '{node.name}' cannot be evaluated for {self._length} tokens: its "
                    f"graph is not pointwise over queries and keys."
                )
            every = torch.arange(self._length)
            value = RowEvaluator(self._program, self._length, every).matrix(node)
            return self._restrict(value, node)
        value = self._value(node)
        if not self._is_matrix(node):
            return self._restrict(value, node)
        result: torch.Tensor = value
        return result

    def by_rows(self, node: fx.Node) -> bool:
        """Can the value be computed for some rows only?"""
        try:
            self._value(node)
        except _NeedsAllRowsError:
            return False
        return True

    def _restrict(self, value: torch.Tensor, node: fx.Node) -> torch.Tensor:
        if self._has_rows(node):
            return value.index_select(-2, self._rows)
        return value

    def _has_rows(self, node: fx.Node) -> bool:
        shape = node.meta["val"].shape
        return len(shape) >= 2 and size_of(shape[-2]) == self._tokens

    def _is_matrix(self, node: Any) -> bool:
        value = node.meta.get("val")
        if self._all or not isinstance(value, torch.Tensor) or value.dim() < 2:
            return False
        return all(size_of(size) == self._tokens for size in value.shape[-2:])

    def _value(self, root: fx.Node) -> Any:
        stack = [root]
        while stack:
            node = stack[-1]
            needed = [*node.all_input_nodes]
            if is_shape_only(node):
                needed = [source for source in needed if source is not node.args[0]]
            missing = [source for source in needed if source not in self._values]
            if node in self._values or not missing:
                stack.pop()
                if node not in self._values:
                    self._values[node] = self._compute(node)
            else:
                stack += missing
        return self._values[root]

    def _compute(self, node: fx.Node) -> Any:
        if node.op == "placeholder":
            return self._input(node)
        if node.op == "get_attr":
            return self._program.weights[str(node.target)].load()
        target: Any = node.target
        if self._is_matrix(node):
            return self._rows_of(node)
        if any(self._is_matrix(n) for n in node.all_input_nodes if n in self._values):
            raise _NeedsAllRowsError(f"'{node.name}' ({target}) works across rows")
        args, kwargs = self._arguments(node)
        return target(*args, **kwargs)

    def _input(self, node: fx.Node) -> torch.Tensor:
        if node.target == "positions":
            return torch.arange(self._length)
        return torch.zeros(self._length, dtype=torch.int64)

    def _arguments(self, node: fx.Node) -> tuple[Any, Any]:
        args, kwargs = pytree.tree_map_only(fx.Node, self._value_or_shape, (node.args, node.kwargs))
        return args, kwargs

    def _value_or_shape(self, node: fx.Node) -> Any:
        """The value; where only the shape matters and nothing was computed, zeros of that shape."""
        if node in self._values:
            return self._values[node]
        zero = torch.zeros((), dtype=node.meta["val"].dtype)
        sizes = list(concrete_shape(self._program, node, self._length))
        if self._is_matrix(node):
            sizes[-2] = len(self._rows)
        return zero.expand(sizes)

    def _rows_of(self, node: fx.Node) -> torch.Tensor:
        """A node with a row and a column axis, for the wanted rows."""
        target: Any = node.target
        name = str(target).removeprefix("aten.")
        args, kwargs = self._arguments(node)
        count = len(self._rows)
        if name in POINTWISE or target in _LIKE:
            return self._pointwise(target, node)
        if target is aten.index.Tensor:
            return self._index(node, args)
        if target in _CREATION:
            sizes = [*args[0][:-2], count, self._length]
            result: torch.Tensor = target(sizes, *args[1:], **kwargs)
            return result
        first: Any = node.args[0]
        source = self._operand(first)
        if target is aten.expand.default:
            return source.expand([*args[1][:-2], count, args[1][-1]])
        if target in (aten.tril.default, aten.triu.default):
            diagonal = args[1] if len(args) > 1 else 0
            offset = torch.arange(self._length) - self._rows[:, None]
            keep = offset <= diagonal if target is aten.tril.default else offset >= diagonal
            return torch.where(keep, source, torch.zeros((), dtype=source.dtype))
        rank = len(first.meta["val"].shape)
        if target is aten.slice.Tensor and rank and args[1] % rank == rank - 1:
            return self._call(target, source, args)
        if target is aten.unsqueeze.default and args[1] % (rank + 1) < rank - 1:
            return self._call(target, source, args)
        if target is aten.reshape.default and self._is_matrix(first):
            sizes = [size_of(size) for size in node.meta["val"].shape[:-2]]
            if all(isinstance(size, int) for size in sizes):
                return source.reshape(*sizes, count, self._length)
        raise _NeedsAllRowsError(f"'{node.name}' ({target}) is not pointwise over queries and keys")

    def _call(self, target: Callable[..., Any], source: torch.Tensor, args: Any) -> torch.Tensor:
        result: torch.Tensor = target(source, *args[1:])
        return result

    def _operand(self, node: Any) -> torch.Tensor:
        value: torch.Tensor = self._value_or_shape(node)
        return value if self._is_matrix(node) else self._restrict(value, node)

    def _pointwise(self, target: Any, node: fx.Node) -> torch.Tensor:
        def load(source: fx.Node) -> Any:
            value = self._value_or_shape(source)
            return self._operand(source) if isinstance(value, torch.Tensor) else value

        args, kwargs = pytree.tree_map_only(fx.Node, load, (node.args, node.kwargs))
        result: torch.Tensor = target(*args, **kwargs)
        return result

    def _index(self, node: fx.Node, args: Any) -> torch.Tensor:
        """source[i, j, …] with every axis indexed: the rows are those of the index tensors."""
        source, indices = args[0], node.args[1]
        assert isinstance(indices, (list, tuple))
        if self._is_matrix(node.args[0]) or len(indices) != source.dim() or None in indices:
            raise _NeedsAllRowsError(f"'{node.name}' indexes by a part of its axes")
        result: torch.Tensor = source[tuple(self._operand(index) for index in indices)]
        return result
