"""Writes in place, as values: what torch's decompositions do by tracing the whole graph again.

A graph of torch.export may write to a tensor that it made, as a whole or through a view of it. Each
write becomes a new value of that tensor, and whoever reads it afterwards reads the new one.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.node import map_arg

__all__ = ["CannotRewriteError", "is_write", "without_writes"]

aten = torch.ops.aten
_KEPT_META = ("stack_trace", "nn_module_stack")


class CannotRewriteError(Exception):
    """A write that is left to torch's decompositions."""


def is_write(target: Any) -> bool:
    """Is `target` an op that writes to one of its arguments?"""
    return isinstance(target, torch._ops.OpOverload) and target._schema.is_mutable


def without_writes(graph: fx.Graph, mode: FakeTensorMode) -> fx.Graph:
    """A copy of `graph`, whose values are of `mode`:  x.add_(y)  →  x' = x + y, then x' for x.

    A write to a slice or an entry of x puts the new part into x, and other views of x are taken
    again from x'. Raises CannotRewriteError where x is given from outside, is written to through
    another kind of view, or would become another dtype or shape.
    """
    return _Rewriter(mode).rewrite(graph)


class _Rewriter:
    """By node of the old graph: the tensor it is a view of (itself if none), the node it was taken
    from, how often that tensor had been written to by then, and the node that stands for it."""

    def __init__(self, mode: FakeTensorMode) -> None:
        self._mode = mode
        self._graph = fx.Graph()
        self._base: dict[fx.Node, fx.Node] = {}
        self._source: dict[fx.Node, fx.Node] = {}
        self._seen: dict[fx.Node, int] = {}
        self._writes: dict[fx.Node, int] = {}
        self._now: dict[fx.Node, fx.Node] = {}

    def rewrite(self, graph: fx.Graph) -> fx.Graph:
        for node in graph.nodes:
            if node.op == "call_function" and is_write(node.target):
                self._write(node)
                continue
            if node.op == "get_attr":
                raise CannotRewriteError(f"'{node.name}' is no tensor of the graph")
            self._now[node] = self._graph.node_copy(node, self._read)
            self._place(node, _source_of(node))
        return self._graph

    def _place(self, node: fx.Node, source: fx.Node | None) -> None:
        self._base[node] = base = node if source is None else self._base[source]
        if source is not None:
            self._source[node] = source
        self._seen[node] = self._writes.setdefault(base, 0)

    def _read(self, node: fx.Node) -> fx.Node:
        """What `node` is by now."""
        writes = self._writes[self._base[node]]
        if self._seen[node] != writes:
            source = self._source[node]
            if is_write(node.target):  # it returned the tensor that it had written to
                self._now[node] = self._read(source)
            elif node.target in _PART or node.target in _WHOLE:
                self._now[node] = self._graph.node_copy(node, self._read)
            else:
                raise CannotRewriteError(f"'{node.name}' may be a view of what is written to")
            self._seen[node] = writes
        return self._now[node]

    def _write(self, node: fx.Node) -> None:
        target: Any = node.args[0]
        if not isinstance(target, fx.Node):
            raise CannotRewriteError(f"'{node.name}' writes to several tensors")
        value = self._written(node, target)
        self._put(node, target, value)
        self._now[node] = value
        self._place(node, target)

    def _written(self, node: fx.Node, target: fx.Node) -> fx.Node:
        """The value of `target` behind the write `node`."""
        given = (0,) if node.target is aten.zero_.default else node.args[1:]
        rest, named = map_arg((given, node.kwargs), self._read)
        value = self._call(node, _functional(node), self._read(target), *rest, **named)
        old, new = target.meta["val"], value.meta["val"]
        if old.dtype != new.dtype or list(old.shape) != list(new.shape):
            raise CannotRewriteError(f"'{node.name}' casts or broadcasts what it writes")
        return value

    def _put(self, node: fx.Node, target: fx.Node, value: fx.Node) -> None:
        """From here on `target` is `value`, and so is that part of whatever it is a view of."""
        base = self._base[target]
        if base.op != "call_function":
            raise CannotRewriteError(f"'{node.name}' writes to '{base.name}', which was given")
        chain = [target]
        while chain[-1] is not base:
            chain.append(self._source[chain[-1]])
        values = [value]
        for view, source in pairwise(chain):
            values.append(self._put_back(node, view, source, values[-1]))
        self._writes[base] += 1
        for view, current in zip(chain, values, strict=True):
            self._now[view], self._seen[view] = current, self._writes[base]

    def _put_back(self, node: fx.Node, view: fx.Node, source: fx.Node, part: fx.Node) -> fx.Node:
        """`source`, with `part` where `view` looks at it."""
        if is_write(view.target):
            return part
        if view.kwargs or view.target not in {**_PART, **_WHOLE}:
            raise CannotRewriteError(f"'{node.name}' writes through '{view.name}'")
        sizes = list(source.meta["val"].shape)
        if view.target is aten.squeeze.dim and list(view.meta["val"].shape) == sizes:
            return part
        arguments = map_arg(view.args[1:], self._read)
        if view.target in _WHOLE:
            whole = self._call(node, _WHOLE[view.target], part, *arguments)
        else:
            op = _PART[view.target]
            whole = self._call(node, op, self._read(source), part, *arguments)
        if list(whole.meta["val"].shape) != sizes:
            raise CannotRewriteError(f"'{view.name}' does not show all of '{source.name}'")
        return whole

    def _call(self, node: fx.Node, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        new = self._graph.call_function(target, args, kwargs)
        values = map_arg((args, kwargs), lambda source: source.meta["val"])
        with self._mode, torch.no_grad():
            new.meta["val"] = target(*values[0], **values[1])
        new.meta.update({key: node.meta[key] for key in _KEPT_META if key in node.meta})
        return new


def _source_of(node: fx.Node) -> fx.Node | None:
    """The argument that the result of `node` shares memory with, or may share it with."""
    source: Any = node.args[0] if node.args else None
    if isinstance(node.target, torch._ops.OpOverload):
        arguments = node.target._schema.arguments
        shared = [i for i, argument in enumerate(arguments) if argument.alias_info is not None]
        if not shared:
            return None
        if shared != [0] or not isinstance(source, fx.Node):
            raise CannotRewriteError(f"'{node.name}' returns a view of one of several arguments")
        return source
    if node.target is operator.getitem and isinstance(source, fx.Node):
        return source if _source_of(source) is not None else None  # an entry of several views
    return None


def _functional(node: fx.Node) -> Callable[..., Any]:
    """The op that returns what `node` writes to its first argument."""
    target: Any = node.target
    if target in _FILLS:
        return _FILLS[target]
    name, arguments = target._schema.name.removeprefix("aten::"), target._schema.arguments
    written = [argument.name for argument in arguments if argument.alias_info is not None]
    packet = getattr(aten, name[:-1], None) if name.endswith("_") else None
    function = getattr(packet, target._overloadname, None)
    if written != [arguments[0].name] or function is None or target.namespace != "aten":
        raise CannotRewriteError(f"'{node.name}' is {target}")
    if [a.name for a in function._schema.arguments] != [a.name for a in arguments]:
        raise CannotRewriteError(f"'{node.name}' is {target}")
    return function  # type: ignore[no-any-return]


_FILLS: dict[Any, Callable[..., Any]] = {
    aten.fill_.Scalar: aten.full_like.default,
    aten.zero_.default: aten.full_like.default,
}
# From a view to the op that returns its source with that part replaced: op(source, part, …),
_PART: dict[Any, Callable[..., Any]] = {
    aten.slice.Tensor: aten.slice_scatter.default,
    aten.select.int: aten.select_scatter.default,
}
# and from one that shows all of its source to the op that undoes it: op(view, …).
_WHOLE: dict[Any, Callable[..., Any]] = {
    aten.squeeze.dim: aten.unsqueeze.default,
    aten.unsqueeze.default: aten.squeeze.dim,
    aten.transpose.int: aten.transpose.int,
}
