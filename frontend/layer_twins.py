"""One layer of a list, and what tells it from another: tensors, modules, attributes that are read.

Two layers of one class that read equal attributes and get equal arguments run the same code. Their
index usually differs: it does not matter unless the forward looks at it. A module that carries a
state looks its state up by an index, which is then as good as equal.
"""

from __future__ import annotations

import enum
import functools
import types
from collections.abc import Hashable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

__all__ = ["WRITTEN", "Layer", "find_layers"]

WRITTEN = 0
"""In place of a module's dict: the attribute was not read but set."""

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_PLAIN = (int, float, complex, str, bytes, type(None), enum.Enum, torch.dtype, torch.device)
_MISSING = object()


class Layer:
    """A module of a list and everything in it, by names relative to it."""

    def __init__(
        self, number: int, path: str, module: nn.Module, places: Mapping[int, int] | None = None
    ) -> None:
        """places: by the id of a module's dict, the index that its state lies at."""
        self.number, self.path, self.module = number, path, module
        self._places = places or {}
        self.modules = dict(module.named_modules(remove_duplicate=False))
        self.tensors: dict[str, torch.Tensor] = dict(
            module.named_parameters(remove_duplicate=False)
        )
        self.tensors.update(module.named_buffers(remove_duplicate=False))
        self.by_dict = {id(vars(each)): name for name, each in self.modules.items()}
        self._module_names = _names(self.modules)
        self._tensor_names = _names(self.tensors)

    def own(self) -> dict[int, str]:
        """The first name of each parameter and buffer, by its id."""
        return {key: names[0] for key, names in self._tensor_names.items()}

    @property
    def is_plain(self) -> bool:
        """Nothing that runs beside the forward of the classes?"""
        return not any(
            "forward" in vars(each) or any(vars(each).get(hooks) for hooks in _HOOKS)
            for each in self.modules.values()
        )

    def shape(self) -> Hashable:
        """Equal for layers made of the same classes and of tensors of the same types and ties."""
        tensors = {
            name: (t.shape, t.dtype, t.device, tuple(self._tensor_names[id(t)]))
            for name, t in self.tensors.items()
        }
        classes = {
            name: (type(each), tuple(self._module_names[id(each)]))
            for name, each in self.modules.items()
        }
        return tuple(tensors.items()), tuple(classes.items())

    def difference(self, other: Layer, reads: set[tuple[int, str]]) -> str | None:
        """The first attribute among `reads` (by the id of the module's dict in this layer) that
        the two have different values of, or that was WRITTEN."""
        for holder, attribute in sorted(reads, key=lambda read: read[1]):
            if holder == WRITTEN:
                return attribute
            name = self.by_dict.get(holder)
            if name is None:
                continue
            mine = vars(self.modules[name]).get(attribute, _MISSING)
            theirs = vars(other.modules[name]).get(attribute, _MISSING)
            if self._same(mine, theirs, other):
                continue
            if not (self._is_place(name, mine) and other._is_place(name, theirs)):
                return f"{name}.{attribute}".lstrip(".")
        return None

    def state(self, reads: set[tuple[int, str]]) -> Hashable:
        """The plain attributes of objects among `reads` that are neither module nor tensor, as a
        configuration. Whoever holds them may change them between two layers."""
        found: dict[str, Hashable] = {}
        for holder, attribute in reads:
            if holder not in self.by_dict:
                continue
            name = self.by_dict[holder]
            value = vars(self.modules[name]).get(attribute)
            if hasattr(value, "__dict__") and not isinstance(value, (nn.Module, torch.Tensor)):
                plain = {k: repr(v) for k, v in vars(value).items() if isinstance(v, _PLAIN)}
                found[f"{name}.{attribute}"] = tuple(sorted(plain.items()))
        return tuple(sorted(found.items()))

    def _is_place(self, name: str, value: Any) -> bool:
        """Is `value` where the module of that name finds its state?"""
        place = self._places.get(id(vars(self.modules[name])))
        return place is not None and type(value) is int and value == place

    def _same(self, mine: Any, theirs: Any, other: Layer) -> bool:
        if isinstance(mine, nn.Module) and id(mine) in self._module_names:
            return self._module_names[id(mine)] == other._module_names.get(id(theirs))
        if isinstance(mine, torch.Tensor) and id(mine) in self._tensor_names:
            return self._tensor_names[id(mine)] == other._tensor_names.get(id(theirs))
        if isinstance(mine, types.MethodType) and isinstance(theirs, types.MethodType):
            same = self._same(mine.__self__, theirs.__self__, other)
            return same and mine.__func__ is theirs.__func__
        if type(mine) is not type(theirs):
            return False
        if isinstance(mine, functools.partial):
            mine, theirs = mine.__reduce__()[2], theirs.__reduce__()[2]
        if isinstance(mine, dict):
            return list(mine) == list(theirs) and all(
                self._same(mine[key], theirs[key], other) for key in mine
            )
        if isinstance(mine, (list, tuple)):
            return len(mine) == len(theirs) and all(
                self._same(a, b, other) for a, b in zip(mine, theirs, strict=True)
            )
        if isinstance(mine, _PLAIN):
            return repr(mine) == repr(theirs)
        return mine is theirs


def find_layers(
    model: nn.Module, places: Mapping[int, int] | None = None
) -> dict[str, list[Layer]]:
    """The modules of lists, by the path of their list: the outermost ones, each held once, with
    tensors that nobody else holds. places: as of Layer."""
    holders: dict[int, list[str]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        holders.setdefault(id(module), []).append(path)
    tensors: dict[int, list[str]] = {}
    for source in (model.named_parameters, model.named_buffers):
        for path, tensor in source(remove_duplicate=False):
            tensors.setdefault(id(tensor), []).append(path)
    found: dict[str, list[Layer]] = {}
    paths: list[str] = []
    for path, module in _members(model):
        if any(path.startswith(f"{outer}.") for outer in paths) or len(holders[id(module)]) > 1:
            continue
        layer = Layer(len(paths), path, module, places)
        paths.append(path)
        inside = all(name.startswith(f"{path}.") for key in layer.own() for name in tensors[key])
        if inside and layer.is_plain:
            found.setdefault(path.rpartition(".")[0], []).append(layer)
    return {path: layers for path, layers in found.items() if len(layers) > 1}


def _members(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for path, module in model.named_modules():
        if isinstance(module, (nn.ModuleList, nn.ModuleDict, nn.Sequential)):
            for name, member in module.named_children():
                if not isinstance(member, (nn.ModuleList, nn.ModuleDict)):
                    yield f"{path}.{name}" if path else name, member


def _names(things: dict[str, Any]) -> dict[int, list[str]]:
    names: dict[int, list[str]] = {}
    for name, thing in things.items():
        names.setdefault(id(thing), []).append(name)
    return names
