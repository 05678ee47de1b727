"""How ops that look rows up carry the token axis: in tables, and in each token's own values."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from graphwright.passes.token_rule import MixesTokensError, TokenAxes, argument, from_the_right

__all__ = ["gathered", "index_selected", "indexed", "looked_up"]


def looked_up(node: fx.Node, axes: TokenAxes) -> int:
    """A row of a table for each token."""
    table, ids = argument(node, 0, "weight"), argument(node, 1, "indices")
    axis = axes[ids]
    if axes[table] is not None or axis is None:
        raise MixesTokensError("looks up a table of tokens")
    return axis


def index_selected(node: fx.Node, axes: TokenAxes) -> int:
    """Entries along a dim: of a table by token, or the same of each token."""
    source, dim, index = (argument(node, i, "") for i in range(3))
    value = source.meta["val"]
    dim = int(dim) % int(value.dim())
    axis, by = axes[source], axes[index]
    if axis is None and by is not None:
        return dim
    if axis is None or by is not None or dim == axis:
        raise MixesTokensError("chooses among the tokens")
    return axis


def indexed(node: fx.Node, axes: TokenAxes) -> int:
    """A table indexed by token, or each token's part by the same indices."""
    source: Any = node.args[0]
    indices: Any = node.args[1]
    axis = axes[source]
    given = [(i, index) for i, index in enumerate(indices) if index is not None]
    if axis is None:
        if [i for i, _ in given] != list(range(len(given))):
            raise MixesTokensError("indexes a table in an unknown way")
        found = {from_the_right(axes[n], n.meta["val"].dim()) for _, n in given} - {None}
        if len(found) != 1:
            raise MixesTokensError("combines every token with every other one")
        rank = max(n.meta["val"].dim() for _, n in given)
        aligned: Any = found.pop()
        return int(rank + aligned)
    if len(given) != 1 or axes[given[0][1]] is not None or given[0][0] == axis:
        raise MixesTokensError("chooses among the tokens")
    at, index = given[0]
    if index.meta["val"].dtype == torch.bool:
        raise MixesTokensError("indexes by a condition")
    return int(axis + (index.meta["val"].dim() - 1 if at < axis else 0))


def gathered(node: fx.Node, axes: TokenAxes) -> int:
    """Along dim: a table looked up by each token, or each token's own row."""
    source, dim, index = (argument(node, i, "") for i in range(3))
    axis = axes[index]
    along = int(dim) % node.meta["val"].dim() == axis
    if axis is None or axes[source] != (None if along else axis):
        raise MixesTokensError("chooses among the tokens")
    return axis
