"""Layers whose forward is replaced while a model is traced: marked, recorded or skipped."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol

import torch
from torch import nn
from torch.utils import _pytree as pytree

from graphwright.frontend.layer_markers import ENTER, LEAVE, SKIPPED
from graphwright.frontend.layer_twins import WRITTEN, Layer
from graphwright.frontend.shape_results import constant

__all__ = ["StubbedLayers"]

# What nn.Module itself keeps in every instance: its code reads it at each call.
_INTERNAL = frozenset(vars(nn.Module())) - {"training"}


class Listener(Protocol):
    """What is told of the layers' calls."""

    def begin(self, layer: str, leaves: Sequence[Any], spec: Any, own: dict[int, str]) -> None:
        """`layer` is called with `leaves`; `own` names its parameters and buffers by id."""

    def end(self, layer: str, inputs: Sequence[Any], leaves: Sequence[Any], spec: Any) -> None:
        """`layer` returned `leaves`, having been called with `inputs`."""

    def doubt(self, layer: str, why: str) -> None:
        """The call of `layer` cannot be replaced by another layer's."""


@dataclass
class _Call:
    """How a layer was called in this run of the forward, and what it returned."""

    arguments: Any
    results: Sequence[Any]  # ("input", n), ("tensor", sizes, dtype) or a constant
    spec: Any
    state: Hashable  # of the objects beside modules and tensors that its forward looked at


class StubbedLayers:
    """While open, calls of `layers` come here.

    `twins`: by number, the layer that each one is a copy of. When it is called as that one was, it
    is skipped. `reads`: by number, what a layer's forward looked at: (id of a module's dict, name).
    `repeats`: may some line of the model be in a loop over the tokens?
    """

    def __init__(self, layers: Sequence[Layer]) -> None:
        self.layers = layers
        self.by_path = {layer.path: layer for layer in layers}
        self.twins: dict[int, Layer] = {}
        self.repeats = False
        self.reads: dict[int, set[tuple[int, str]]] = {}
        self._by_dict = {id(vars(layer.module)): layer for layer in layers}
        self._calls: dict[int, _Call] = {}
        self._called: set[int] = set()
        self._recorder: Listener | None = None
        self._watched: set[tuple[int, str]] | None = None
        self._classes: list[tuple[nn.Module, type]] = []

    def __enter__(self) -> StubbedLayers:
        watch = functools.cache(self._watching)
        modules = {id(m): m for layer in self.layers for m in layer.modules.values()}
        self._classes = [(module, type(module)) for module in modules.values()]
        for module, kind in self._classes:
            object.__setattr__(module, "__class__", watch(kind, id(vars(module)) in self._by_dict))
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for module, original in self._classes:
            object.__setattr__(module, "__class__", original)

    @property
    def pairs(self) -> dict[int, tuple[Layer, Layer]]:
        """By number: the layer that this one is a copy of, and itself."""
        by_number = {layer.number: layer for layer in self.layers}
        return {number: (first, by_number[number]) for number, first in self.twins.items()}

    @contextmanager
    def recording(self, recorder: Listener) -> Iterator[None]:
        """While open, `recorder` is told of the layers' calls, and no marks are made."""
        self._recorder = recorder
        try:
            yield
        finally:
            self._recorder = None

    def _watching(self, kind: Any, is_layer: bool) -> type:
        """`kind`, with its attribute reads watched and, for a layer, its forward replaced."""
        stubs = self

        def getattribute(module: Any, name: str) -> Any:
            if stubs._watched is not None and name not in _INTERNAL and name[:2] != "__":
                stubs._watched.add((id(object.__getattribute__(module, "__dict__")), name))
            return kind.__getattribute__(module, name)

        def setattribute(module: Any, name: str, value: Any) -> None:
            if stubs._watched is not None and name[:2] != "__":
                stubs._watched.add((WRITTEN, name))
            kind.__setattr__(module, name, value)

        members: dict[str, Any] = {
            "__getattribute__": getattribute,
            "__setattr__": setattribute,
            "__module__": kind.__module__,
            "__qualname__": kind.__qualname__,
        }
        if is_layer:
            original = kind.forward

            @functools.wraps(original)
            def forward(module: Any, *args: Any, **kwargs: Any) -> Any:
                layer = stubs._by_dict[id(vars(module))]
                return stubs._call(layer, functools.partial(original, module), args, kwargs)

            members["forward"] = forward
        return type(kind.__name__, (kind,), members)

    def _call(self, layer: Layer, run: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if layer.number in self._called:  # another run of the forward
            self._called.clear()
            self._calls.clear()
        self._called.add(layer.number)
        inputs, spec = pytree.tree_flatten((args, kwargs))
        first = self.twins.get(layer.number)
        call = self._calls.get(first.number) if first is not None else None
        arguments = (spec, _describe(inputs))
        recorder = self._recorder
        if recorder is not None:
            recorder.begin(layer.path, inputs, spec, layer.own())
        if first and call and call.arguments == arguments and self._is_like(first, layer, call):
            leaves = _stub(layer.number, inputs, call.results)
            result = pytree.tree_unflatten(leaves, call.spec)
        else:
            marked = self._marks(layer)
            given = _enter(layer.number, inputs) if marked else inputs
            result = self._watch(layer, run, given, spec)
            leaves, out = pytree.tree_flatten(result)
            state = layer.state(self.reads[layer.number])
            self._calls[layer.number] = _Call(arguments, _results(leaves, given), out, state)
            if marked:
                result = pytree.tree_unflatten(_leave(layer.number, leaves, given, inputs), out)
        if recorder is not None:
            again, changed = pytree.tree_flatten((args, kwargs))
            if changed != spec or any(a is not b for a, b in zip(again, inputs, strict=True)):
                recorder.doubt(layer.path, "changes its arguments")
            recorder.end(layer.path, inputs, *pytree.tree_flatten(result))
        return result

    def _watch(self, layer: Layer, run: Callable[..., Any], inputs: Any, spec: Any) -> Any:
        args, kwargs = pytree.tree_unflatten(inputs, spec)
        self._watched = self.reads[layer.number] = set()
        try:
            return run(*args, **kwargs)
        finally:
            self._watched = None

    def _is_like(self, first: Layer, layer: Layer, call: _Call) -> bool:
        reads = self.reads[first.number]
        return first.difference(layer, reads) is None and first.state(reads) == call.state

    def _marks(self, layer: Layer) -> bool:
        if self._recorder is not None:
            return False
        return any(first is layer for first in self.twins.values())


def _describe(leaves: Sequence[Any]) -> list[Any]:
    """Equal for arguments that lead the same code to the same ops: types, constants, and which
    tensors are one."""
    seen: dict[int, int] = {}
    found: list[Any] = []
    for number, leaf in enumerate(leaves):
        if isinstance(leaf, torch.Tensor):
            sizes = tuple(map(constant, (*leaf.shape, *leaf.stride())))
            found.append((leaf.dtype, leaf.device, sizes, seen.setdefault(id(leaf), number)))
        else:
            found.append(constant(leaf))
    return found


def _results(leaves: Sequence[Any], inputs: Sequence[Any]) -> list[Any]:
    places = {id(x): n for n, x in enumerate(inputs) if isinstance(x, torch.Tensor)}
    found: list[Any] = []
    for leaf in leaves:
        if id(leaf) in places:
            found.append(("input", places[id(leaf)]))
        elif isinstance(leaf, torch.Tensor):
            found.append(("tensor", list(leaf.shape), leaf.dtype))
        else:
            found.append(("constant", leaf))
    return found


def _stub(number: int, inputs: Sequence[Any], results: Sequence[Any]) -> list[Any]:
    tensors = [x for x in inputs if isinstance(x, torch.Tensor)]
    leaves: list[Any] = []
    for index, (kind, *value) in enumerate(results):
        if kind == "tensor":
            leaves.append(SKIPPED(tensors, value[0], value[1], number, index))
        else:
            leaves.append(inputs[value[0]] if kind == "input" else value[0])
    return leaves


def _enter(number: int, inputs: Sequence[Any]) -> list[Any]:
    """Every tensor marked with its place among the tensors; one that comes twice, once."""
    marked: dict[int, torch.Tensor] = {}
    place = 0
    result: list[Any] = []
    for leaf in inputs:
        if isinstance(leaf, torch.Tensor):
            if id(leaf) not in marked:
                marked[id(leaf)] = ENTER(leaf, number, place)
            place += 1
            leaf = marked[id(leaf)]
        result.append(leaf)
    return result


def _leave(
    number: int, leaves: Sequence[Any], given: Sequence[Any], inputs: Sequence[Any]
) -> list[Any]:
    """Every result marked; an input that is returned is again what was given from outside."""
    outside = {id(x): inputs[n] for n, x in enumerate(given)}
    result: list[Any] = []
    for index, leaf in enumerate(leaves):
        if isinstance(leaf, torch.Tensor):
            known = id(leaf) in outside
            leaf = outside[id(leaf)] if known else LEAVE(leaf, number, index)
        result.append(leaf)
    return result
