"""Which values do not depend on what the tokens are, and what those values are at a given length.

Masks, positions and rotary tables are such values: they follow from the number of tokens and the
positions alone, so they can be recognised by evaluating them, however they are spelled.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from graphwright.ir.errors import PassError
from graphwright.ir.interpreter import WeightCache
from graphwright.ir.program import Program

__all__ = ["concrete_shape", "content_free_nodes", "evaluate", "is_shape_only"]

aten = torch.ops.aten
_SHAPE_ONLY = frozenset(
    {
        aten.sym_size.int,
        aten.new_ones.default,
        aten.new_zeros.default,
        aten.new_full.default,
        aten.new_empty.default,
        aten.ones_like.default,
        aten.zeros_like.default,
        aten.full_like.default,
        aten.empty_like.default,
    }
)


def is_shape_only(node: fx.Node) -> bool:
    """Does `node` look at its first argument's shape and dtype only, not at its values?"""
    return node.op == "call_function" and node.target in _SHAPE_ONLY


def content_free_nodes(program: Program) -> set[fx.Node]:
    """The nodes whose values depend on positions, lengths and weights only, not on token values."""
    free: set[fx.Node] = set()
    for node in program.graph.nodes:
        if node.op == "placeholder":
            if node.target == "positions":
                free.add(node)
        elif node.op != "output" and all(source in free for source in _value_inputs(node)):
            free.add(node)
    return free


def _value_inputs(node: fx.Node) -> list[fx.Node]:
    """The arguments whose values matter for `node`."""
    if not is_shape_only(node):
        return node.all_input_nodes
    first = node.args[0]
    return [source for source in node.all_input_nodes if source is not first]


def concrete_shape(program: Program, node: fx.Node, length: int) -> tuple[int, ...]:
    """The shape of `node` in a step of `length` tokens."""
    value: Any = node.meta["val"]
    return tuple(_concrete(program, size, length) for size in value.shape)


def _concrete(program: Program, size: Any, length: int) -> int:
    if isinstance(size, int):
        return size
    expression = size.node.expr
    values = {
        symbol: length for symbol in expression.free_symbols if program.dims.get(str(symbol)) == "T"
    }
    result = expression.subs(values)
    if not result.is_number:
        raise PassError(f"the size {expression} depends on more than the number of tokens.")
    return int(result)


def evaluate(
    program: Program,
    nodes: Iterable[fx.Node],
    length: int,
    positions: torch.Tensor | None = None,
    cache: WeightCache | None = None,
) -> dict[fx.Node, torch.Tensor]:
    """The values of content-free `nodes` in a step of `length` tokens of one sequence.

    positions: int64 [length]; default arange(length). Only the ancestors of `nodes` run, and only
    their weights are loaded (and kept in `cache`, when given). Raises PassError when a node depends
    on token content.
    """
    wanted = list(nodes)
    needed, shapes = _ancestors(program, wanted)
    uses: Counter[fx.Node] = Counter(wanted)
    for node in needed:
        uses.update(source for source in _value_inputs(node) if source in needed)
    cache = cache or WeightCache()
    values: dict[fx.Node, Any] = {}
    with torch.no_grad():
        for node in program.graph.nodes:
            if node in needed:
                values[node] = _run(program, node, values, shapes, length, positions, cache)
                for source in {s for s in _value_inputs(node) if s in needed}:
                    uses[source] -= _value_inputs(node).count(source)
                    if uses[source] == 0:
                        del values[source]
    return {node: values[node] for node in wanted}


def _ancestors(program: Program, wanted: list[fx.Node]) -> tuple[set[fx.Node], set[fx.Node]]:
    """What must run for `wanted`, and those nodes of which only the shape is needed."""
    needed: set[fx.Node] = set()
    shapes: set[fx.Node] = set()
    stack = list(wanted)
    while stack:
        node = stack.pop()
        if node in needed:
            continue
        if node.op == "placeholder" and node.target != "positions":
            raise PassError(
                f"'{', '.join(n.name for n in wanted)}' depends on the input '{node.target}', so "
                f"its value is not known before the step runs."
            )
        needed.add(node)
        if is_shape_only(node) and isinstance(node.args[0], fx.Node):
            shapes.add(node.args[0])
        stack.extend(_value_inputs(node))
    return needed, shapes


def _run(
    program: Program,
    node: fx.Node,
    values: dict[fx.Node, Any],
    shapes: set[fx.Node],
    length: int,
    positions: torch.Tensor | None,
    cache: WeightCache,
) -> Any:
    if node.op == "placeholder":
        return torch.arange(length) if positions is None else positions
    if node.op == "get_attr":
        return cache.load(program, str(node.target))

    def value(source: fx.Node) -> Any:
        if source in values:
            return values[source]
        assert source in shapes
        fake: Any = source.meta["val"]
        empty = torch.zeros((), dtype=fake.dtype)
        return empty.expand(concrete_shape(program, source, length))

    args, kwargs = pytree.tree_map_only(fx.Node, value, (node.args, node.kwargs))
    if node.op == "call_module":
        return program.module.get_submodule(str(node.target))(*args, **kwargs)
    assert callable(node.target)
    return node.target(*args, **kwargs)
