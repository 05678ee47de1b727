"""Numbers that torch.export computed from the example's length, and kept as constants."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from torch import fx
from torch.export import ExportedProgram
from torch.fx.experimental.sym_node import SymNode

__all__ = ["constants_differ", "floats_of_the_length", "literals"]


@contextmanager
def floats_of_the_length() -> Iterator[set[float]]:
    """While open, collects the floats that were asked for of expressions of a size."""
    found: set[float] = set()
    original = SymNode.guard_float

    def watch(self: Any, file: str, line: int) -> float:
        value = float(original(self, file, line))
        if self.expr.free_symbols:
            found.add(value)
        return value

    with mock.patch.object(SymNode, "guard_float", watch):
        yield found


def constants_differ(first: ExportedProgram, second: ExportedProgram) -> tuple[fx.Node, Any] | None:
    """The first node that holds another number in `second`, a trace of another length, with that
    number; None when the two are the same graph."""
    for one, two in zip(first.graph.nodes, second.graph.nodes, strict=False):
        for left, right in zip(_literals(one), _literals(two), strict=False):
            if left != right:
                return one, right
        if one.target != two.target and one.op == "call_function":
            return one, two.target
    return None


def literals(exported: ExportedProgram) -> set[float]:
    """The floats in the graph."""
    return {x for node in exported.graph.nodes for x in _literals(node) if isinstance(x, float)}


def _literals(node: fx.Node) -> list[Any]:
    if node.op != "call_function":
        return []
    found: list[Any] = []
    fx.node.map_aggregate(
        (node.args, node.kwargs),
        lambda x: found.append(x) if isinstance(x, (int, float)) else None,
    )
    return found
