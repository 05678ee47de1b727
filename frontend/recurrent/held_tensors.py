"""The tensors that an object holds, by where they lie in it, and copies of it with others."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

__all__ = ["Path", "held_tensors", "with_tensors"]

Path = tuple[Any, ...]
"""Attribute names, keys and indices, from the object to the tensor."""

_PLAIN = (int, float, complex, str, bytes, type(None), type, torch.dtype, torch.device, nn.Module)


def held_tensors(thing: Any) -> dict[Path, torch.Tensor]:
    """Every tensor in `thing`: in its attributes, lists, tuples and dictionaries, and in theirs."""
    return dict(_walk(thing, (), set()))


def _walk(thing: Any, path: Path, seen: set[int]) -> Iterator[tuple[Path, torch.Tensor]]:
    if isinstance(thing, torch.Tensor):
        yield path, thing
        return
    if isinstance(thing, _PLAIN) or id(thing) in seen:
        return
    seen.add(id(thing))
    for key, value in _members(thing):
        yield from _walk(value, (*path, key), seen)


def _members(thing: Any) -> list[tuple[Any, Any]]:
    if isinstance(thing, dict):
        return list(thing.items())
    if isinstance(thing, (list, tuple)):
        return list(enumerate(thing))
    if callable(thing):
        return []
    return list(getattr(thing, "__dict__", {}).items())


def with_tensors(thing: Any, tensors: Mapping[Path, torch.Tensor]) -> Any:
    """A copy of `thing` that holds `tensors` at those paths and shares all other tensors.

    What it holds in several places, as itself, is one copy there."""
    return _copied(thing, tensors, (), {})


def _copied(
    thing: Any, tensors: Mapping[Path, torch.Tensor], path: Path, copies: dict[int, Any]
) -> Any:
    if path in tensors:
        return tensors[path]
    if id(thing) in copies:
        return copies[id(thing)]
    members = [] if isinstance(thing, (torch.Tensor, *_PLAIN)) else _members(thing)
    if not members:
        return thing
    if not isinstance(thing, tuple):
        copies[id(thing)] = clone = copy.copy(thing)
    new = {key: _copied(value, tensors, (*path, key), copies) for key, value in members}
    if isinstance(thing, tuple):
        clone = (
            type(thing)(*new.values()) if hasattr(thing, "_fields") else type(thing)(new.values())
        )
        copies[id(thing)] = clone
    elif isinstance(thing, list):
        clone[:] = new.values()
    elif isinstance(thing, dict):
        clone.update(new)
    else:
        clone.__dict__.update(new)
    return clone
