"""Which packed weights two artifacts have in common, byte for byte."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from graphwright.inspector.text import Readable, read_json

__all__ = ["weight_difference"]

_PIECE = 64 << 20  # bytes that are compared at once


def weight_difference(old: Readable, new: Readable) -> dict[str, Any] | None:
    """None if weights.bin is the same by its hash. Else `same`, the number of weights that are, and
    the names of those with other bytes (`changed`), of another kind (`retyped`: both kinds), and of
    those that one side alone has (`removed`, `added`). A kind is dtype, layout and bytes.
    """
    hashes = [read_json(each, "manifest.json")["entries"].get("weights.bin") for each in (old, new)]
    if hashes[0] == hashes[1]:
        return None
    here, there = _weights(old), _weights(new)
    both = [name for name in here if name in there]
    kinds = {name: [_kind(here[name]), _kind(there[name])] for name in both}
    alike = [name for name in both if kinds[name][0] == kinds[name][1]]
    changed = [name for name in alike if not _same(old, new, here[name], there[name])]
    return {
        "same": len(alike) - len(changed),
        "changed": changed,
        "retyped": {name: kinds[name] for name in both if kinds[name][0] != kinds[name][1]},
        "removed": [name for name in here if name not in there],
        "added": [name for name in there if name not in here],
    }


def _weights(artifact: Readable) -> dict[str, Mapping[str, Any]]:
    found = read_json(artifact, "plan.json")["weights"].get("entries", ())
    return {each["name"]: each for each in found}


def _kind(weight: Mapping[str, Any]) -> str:
    return f"{weight['dtype']} {weight['layout']}, {weight['bytes']} bytes"


def _same(old: Readable, new: Readable, here: Mapping[str, Any], there: Mapping[str, Any]) -> bool:
    """Are the bytes of two weights of one kind the same?"""
    views = [_view(artifact)[each["offset"] :] for artifact, each in ((old, here), (new, there))]
    for first in range(0, here["bytes"], _PIECE):
        last = min(first + _PIECE, here["bytes"])
        if bytes(views[0][first:last]) != bytes(views[1][first:last]):
            return False
    return True


def _view(artifact: Readable) -> memoryview:
    """weights.bin, where it is mapped if it is."""
    view = getattr(artifact, "view", None)
    return memoryview(view("weights.bin") if view else artifact.read("weights.bin"))
