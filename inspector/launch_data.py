"""What an artifact for GPUs says of its launches: kernels, their resources, buckets, sources."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from graphwright.inspector.text import Readable, read_json

__all__ = ["launch_data"]

_LAUNCHES = "gpu/launches.json"
_SOURCES = "gpu/source/"
_LISTS = ("launches", "largest", "drawn")


def launch_data(artifact: Readable) -> dict[str, Any] | None:
    """None for CPUs. `kernels`: by chip and name, with the bytes of the cubin; `entries`: the
    buckets of each, whose launches are numbers of `launches`, each [kernel, grid, regions that it
    is given]; `sources`: the generated ones, by the kernel's name."""
    if _LAUNCHES not in artifact.names:
        return None
    found = read_json(artifact, _LAUNCHES)
    sizes = read_json(artifact, "manifest.json")["entries"]
    launches: dict[tuple[Any, ...], int] = {}

    def number(launch: Sequence[Any]) -> int:
        kernel, grid, operands = launch
        regions = tuple(dict.fromkeys(str(region) for region, _ in operands))
        return launches.setdefault((kernel, tuple(grid), regions), len(launches))

    entries = {
        name: [
            {"tokens": bucket["tokens"], "rows": bucket["rows"]}
            | {kind: [number(each) for each in bucket.get(kind, ())] for kind in _LISTS}
            for bucket in buckets
        ]
        for name, buckets in found["entries"].items()
    }
    return {
        "chips": found["chips"],
        "kernels": {
            chip: {name: _kernel(chip, name, each, sizes) for name, each in kernels.items()}
            for chip, kernels in found["kernels"].items()
        },
        "launches": [[kernel, list(grid), list(regions)] for kernel, grid, regions in launches],
        "entries": entries,
        "sources": {
            name.removeprefix(_SOURCES).removesuffix(".py"): artifact.read(name).decode(
                errors="replace"
            )
            for name in artifact.names
            if name.startswith(_SOURCES)
        },
    }


def _kernel(
    chip: str, name: str, facts: Mapping[str, Any], sizes: Mapping[str, Any]
) -> dict[str, Any]:
    """Those of its facts that say what it takes of the chip."""
    kept = {key: facts[key] for key in ("symbol", "warps", "shared", "registers", "stack", "early")
            if key in facts}  # fmt: skip
    return kept | {"cubin": sizes.get(f"gpu/{chip}/{name}.cubin", {}).get("bytes")}
