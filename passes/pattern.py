"""Local rewrites as pattern / check / replacement, all three in the graph's own notation.

    def pattern(x, eps):
        return aten.mul.Tensor(x, aten.rsqrt.default(aten.add.Tensor(mean_square(x), eps)))

    def replacement(x, eps):
        return gw.rms_norm.default(x, None, eps=eps)

    Rewrite(pattern, replacement, check)

A pattern's parameters are wildcards for nodes and constants; one used twice must be the same both
times. Arguments left out have their schema's default, axes are counted from the end, and additions,
products, maxima and minima match in both orders. `Match[name]` is what a parameter stands for.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from graphwright.ir.program import Program
from graphwright.passes.base import Pass

__all__ = ["Match", "Rewrite", "apply_rewrites", "is_number"]

aten = torch.ops.aten
_COMMUTATIVE = frozenset(
    {aten.add.Tensor, aten.mul.Tensor, aten.maximum.default, aten.minimum.default}
)
_ADDS_AXIS = frozenset({aten.unsqueeze.default, aten.stack.default})
_Bindings = dict[fx.Node, Any]  # node of the pattern -> node of the graph, or a constant


@dataclass(frozen=True)
class Match:
    """Where a pattern was found: its parameters' values, its outputs, and every node it covers."""

    values: dict[str, Any]
    outputs: tuple[fx.Node, ...]
    nodes: tuple[fx.Node, ...]

    def __getitem__(self, name: str) -> Any:
        return self.values[name]


def _no_check(match: Match) -> str | None:
    return None


@dataclass(frozen=True)
class Rewrite:
    """One rewrite. `pattern` returns one value or a tuple, the first being where matching starts.

    `check` gives the reason, with the offending value, why a match is left alone; None rewrites it.
    `replacement` takes the same parameters (or fewer) and returns as many values as the pattern.
    Nodes inside the match may have no users outside of it, unless the pattern returns them.
    A `required` rewrite is made without fuel too: what it replaces cannot be lowered.
    """

    pattern: Callable[..., Any]
    replacement: Callable[..., Any]
    check: Callable[[Match], str | None] = _no_check
    required: bool = False

    def match(self, node: fx.Node) -> Match | str | None:
        """The match that ends in `node`; the reason of a near miss; None if nothing looks alike."""
        parameters, wanted = _trace(self.pattern)
        if wanted[0].op == "call_function" and wanted[0].target is not node.target:
            return None
        miss: str | None = None
        for bindings in _match_value(wanted[0], node, {}):
            covered = tuple(v for k, v in bindings.items() if k.op == "call_function")
            values = {name: bindings[p] for name, p in parameters.items() if p in bindings}
            match = Match(values, tuple(bindings[output] for output in wanted), covered)
            reason = _outside_user(match) or _late_input(match) or self.check(match)
            if reason is None:
                return match
            miss = miss or reason
        return miss

    def apply(self, program: Program, match: Match) -> None:
        """Puts the replacement in the place of `match`."""
        before = min(match.outputs)
        for value in match.values.values():
            if isinstance(value, fx.Node) and value.op == "get_attr" and before < value:
                before.prepend(value)
        results = _insert(program, before, self.replacement, match)
        assert len(results) == len(match.outputs)
        for old, new in zip(match.outputs, results, strict=True):
            old.replace_all_uses_with(new)
        for node in sorted(match.nodes, reverse=True):
            if not node.users:
                program.graph.erase_node(node)


def apply_rewrites(step: Pass, program: Program, rewrites: Sequence[Rewrite]) -> int:
    """Tries `rewrites` in order at each node, first to last, and makes the first that holds.

    Returns how many were made; near misses at nodes where none was made go to `step.miss`.
    """
    count = 0
    for node in list(program.graph.nodes):
        if node._erased or node.op != "call_function":
            continue
        misses: list[str] = []
        for rewrite in rewrites:
            found = rewrite.match(node)
            if isinstance(found, Match):
                misses = []
                if rewrite.required or step.allowed():
                    rewrite.apply(program, found)
                    count += 1
                break
            if found is not None:
                misses.append(found)
        for reason in dict.fromkeys(misses):
            step.miss(f"'{node.name}': {reason}")
    return count


def is_number(value: Any) -> bool:
    """Is a parameter's value a Python number (and not a node)?"""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


@functools.cache
def _trace(function: Callable[..., Any]) -> tuple[dict[str, fx.Node], tuple[fx.Node, ...]]:
    """The placeholder of each parameter, and the nodes that `function` returns."""
    graph = fx.Graph()
    tracer = fx.proxy.GraphAppendingTracer(graph)
    parameters = {name: graph.placeholder(name) for name in inspect.signature(function).parameters}
    result = function(*(fx.Proxy(node, tracer) for node in parameters.values()))
    results = result if isinstance(result, tuple) else (result,)
    return parameters, tuple(proxy.node for proxy in results)


def _match_value(wanted: Any, actual: Any, bindings: _Bindings) -> Iterator[_Bindings]:
    """Every way to read `actual` as `wanted`, each as the extended bindings."""
    if isinstance(wanted, fx.Node):
        if wanted in bindings:
            if _same(bindings[wanted], actual):
                yield bindings
        elif wanted.op == "placeholder":
            yield {**bindings, wanted: actual}
        elif isinstance(actual, fx.Node) and actual.target is wanted.target:
            yield from _match_call(wanted, actual, bindings)
    elif isinstance(wanted, (list, tuple)):
        if isinstance(actual, (list, tuple)) and len(actual) == len(wanted):
            yield from _match_all(list(wanted), list(actual), bindings)
    elif _same(wanted, actual):
        yield bindings


def _match_call(wanted: fx.Node, actual: fx.Node, bindings: _Bindings) -> Iterator[_Bindings]:
    wants, gots = _arguments(wanted), _arguments(actual)
    bindings = {**bindings, wanted: actual}
    yield from _match_all(wants, gots, bindings)
    if wanted.target in _COMMUTATIVE and not _same(gots[0], gots[1]):
        yield from _match_all(wants, [gots[1], gots[0], *gots[2:]], bindings)


def _match_all(wants: list[Any], gots: list[Any], bindings: _Bindings) -> Iterator[_Bindings]:
    if not wants:
        yield bindings
        return
    for extended in _match_value(wants[0], gots[0], bindings):
        yield from _match_all(wants[1:], gots[1:], extended)


def _same(wanted: Any, actual: Any) -> bool:
    if isinstance(wanted, fx.Node) or isinstance(actual, fx.Node):
        return wanted is actual
    if isinstance(wanted, float) and is_number(actual):
        return math.isclose(wanted, actual, rel_tol=1e-6)
    if isinstance(wanted, (list, tuple)) and isinstance(actual, (list, tuple)):
        return list(wanted) == list(actual)
    return bool(wanted == actual)


def _arguments(node: fx.Node) -> list[Any]:
    """The arguments in schema order, defaults filled in, axes counted from the end where known."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return list(node.args)
    values: list[Any] = []
    for position, argument in enumerate(node.target._schema.arguments):
        default = argument.default_value if argument.has_default_value() else None
        given = node.args[position] if position < len(node.args) else None
        value = given if position < len(node.args) else node.kwargs.get(argument.name, default)
        values.append(_from_end(node, value) if argument.name == "dim" else value)
    return values


def _from_end(node: fx.Node, axes: Any) -> Any:
    source: Any = node.args[0][0] if isinstance(node.args[0], (list, tuple)) else node.args[0]
    if "val" not in source.meta:  # a node of a pattern
        return axes
    rank = source.meta["val"].dim() + (node.target in _ADDS_AXIS)
    if isinstance(axes, (list, tuple)):
        return [axis - rank if axis >= 0 else axis for axis in axes]
    return axes - rank if isinstance(axes, int) and axes >= 0 else axes


def _outside_user(match: Match) -> str | None:
    covered = set(match.nodes)
    for node in match.nodes:
        outside = [user.name for user in node.users if user not in covered]
        if outside and node not in match.outputs:
            return f"the intermediate '{node.name}' is also used by '{outside[0]}'."
    return None


def _late_input(match: Match) -> str | None:
    first = min(match.outputs)
    for value in match.values.values():
        if isinstance(value, fx.Node) and value.op != "get_attr" and first < value:
            return f"the input '{value.name}' is computed after '{first.name}'."
    return None


def _insert(
    program: Program, before: fx.Node, function: Callable[..., Any], match: Match
) -> list[fx.Node]:
    """Calls `function` on the match's values, appending its nodes in front of `before`."""
    tracer = fx.proxy.GraphAppendingTracer(program.graph)
    values = [match.values.get(name) for name in inspect.signature(function).parameters]
    last = before.prev
    with program.graph.inserting_before(before):
        result = function(*(fx.Proxy(v, tracer) if isinstance(v, fx.Node) else v for v in values))
    node = last.next
    while node is not before:
        program.infer(node)
        if "stack_trace" in match.outputs[0].meta:
            node.meta["stack_trace"] = match.outputs[0].meta["stack_trace"]
        node = node.next
    results = result if isinstance(result, tuple) else (result,)
    return [proxy.node for proxy in results]
