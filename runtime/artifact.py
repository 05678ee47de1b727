"""Reading an artifact: one mapped file, every byte of it checked before any of it is used, unless
this very file was checked before (verified.py).

What can be wrong with a file (not an artifact, truncated, bits flipped, too new, made for another
CPU) is an ArtifactError of one sentence.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import platform
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from graphwright.runtime.artifact_writer import (
    CHUNK,
    FORMAT_VERSION,
    ArtifactWriter,
    check_writable,
)
from graphwright.runtime.cpu import cpu_features
from graphwright.runtime.errors import ArtifactError
from graphwright.runtime.variants import Variant, best_variant, read_variants
from graphwright.runtime.verified import is_verified, remember_verified
from graphwright.runtime.zip_layout import Range, read_layout, structure_digest

__all__ = ["Artifact", "ArtifactWriter", "Manifest", "check_writable"]

_PIECE = 64 << 20  # bytes of an entry that are copied at once


@dataclass(frozen=True)
class Manifest:
    """What an artifact says about itself. `entries`: name -> bytes, sha256 and perhaps chunks.

    target: the names of the variants, joined by commas; cpu_features: what all of them need.
    """

    format_version: int
    minimum_reader: int
    graphwright: str
    target: str
    cpu_features: tuple[str, ...]
    variants: tuple[Variant, ...]  # from the most capable
    entries: dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Artifact:
    """An open artifact: its entries are views of one mapping, which outlives the file's name."""

    path: Path
    size: int
    manifest: Manifest
    _mapping: mmap.mmap
    _layout: dict[str, Range]

    @classmethod
    def open(
        cls, path: str | Path, *, verify: bool = True, again: bool = False, any_cpu: bool = False
    ) -> Artifact:
        """Maps `path`. `verify`: check every byte, once as long as the file does not change, or
        `again`; `any_cpu`: it will be read here, not run.

        Raises ArtifactError.
        """
        path = Path(path)
        try:
            with path.open("rb") as file:
                state = os.fstat(file.fileno())
                size = state.st_size
                layout = read_layout(file, size, path)
                mapping = _map(file.fileno(), size)
                manifest = _manifest(path, mapping, layout)
                artifact = cls(path, size, manifest, mapping, layout)
                if not any_cpu:
                    artifact.variant()
                if verify:
                    artifact._verify(file, state, again)
        except OSError as error:
            raise ArtifactError(f"{path} cannot be read: {error.strerror or error}.") from error
        return artifact

    @property
    def names(self) -> tuple[str, ...]:
        """The entries, in file order."""
        return tuple(self._layout)

    def __contains__(self, name: str) -> bool:
        return name in self._layout

    def view(self, name: str) -> memoryview:
        """The bytes of an entry, not copied; page aligned those of weights.bin and libraries."""
        where = self._layout.get(name)
        if where is None:
            raise ArtifactError(f"{self.path} has no entry '{name}'; it is incomplete.")
        return memoryview(self._mapping)[where.offset : where.offset + where.size]

    def read(self, name: str) -> bytes:
        """A copy of an entry's bytes."""
        return bytes(self.view(name))

    def json(self, name: str) -> Any:
        """An entry as JSON. Raises ArtifactError when it is none."""
        try:
            return json.loads(self.read(name))
        except ValueError as error:
            raise ArtifactError(
                f"the entry '{name}' of {self.path} is not JSON: {error}."
            ) from error

    def settings(self, name: str) -> dict[str, Any]:
        """An entry as a JSON object; {} without one. Raises ArtifactError for other JSON."""
        found = self.json(name) if name in self else {}
        if not isinstance(found, dict):
            raise ArtifactError(
                f"the entry '{name}' of {self.path} must hold a JSON object, not "
                f"{type(found).__name__}."
            )
        return found

    def will_need(self, name: str) -> None:
        """Asks the system to read an entry ahead."""
        where = self._layout[name]
        self._advise("MADV_WILLNEED", where.offset, where.offset + where.size)

    def copy(self, name: str, out: memoryview) -> None:
        """Copies an entry to `out`, bytes as many, and lets go of the file's memory on the way."""
        where, view = self._layout[name], self.view(name)
        for first in range(0, where.size, _PIECE):
            last = min(first + _PIECE, where.size)
            out[first:last] = view[first:last]
            self._advise("MADV_DONTNEED", where.offset + first, where.offset + last)

    def _advise(self, advice: str, first: int, last: int) -> None:
        if hasattr(mmap, advice) and first < last:
            begin = first // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
            self._mapping.madvise(getattr(mmap, advice), begin, last - begin)

    def variant(self) -> Variant:
        """The best variant for this machine's CPU. Raises ArtifactError when it runs none."""
        variants, features = self.manifest.variants, cpu_features()
        best = best_variant(variants, features)
        if best is not None:
            return best
        missing = {each.name: ", ".join(each.missing(features)) for each in variants}
        lacks = "; ".join(f"{words} for '{name}'" for name, words in missing.items())
        if len(variants) == 1:
            lacks = missing[variants[0].name]
        names = " and ".join(f"'{each.name}'" for each in variants)
        raise ArtifactError(
            f"{self.path} was compiled for {names}; this {platform.machine()} CPU lacks {lacks}. "
            "Compile it again with another --target."
        )

    def _verify(self, file: BinaryIO, state: os.stat_result, again: bool) -> None:
        digest = structure_digest(file, self.size, self._layout.values())
        if digest.encode() != self._mapping[self.size - 64 : self.size]:
            raise ArtifactError(
                f"{self.path} is damaged: its zip headers differ from their digest."
            )
        if not again and is_verified(self.path, state, digest):
            return
        parts = list(self._parts())
        for (name, _, expected), found in zip(parts, _hash_all(parts), strict=True):
            if found != expected:
                raise ArtifactError(
                    f"{self.path} is damaged: the sha256 of '{name}' is {found[:16]}…, "
                    f"not {expected[:16]}… as its manifest says."
                )
        remember_verified(self.path, state, digest)

    def _parts(self) -> Iterator[tuple[str, memoryview, str]]:
        for name, entry in self.manifest.entries.items():
            view = self.view(name)
            if "chunks" not in entry:
                yield name, view, entry["sha256"]
                continue
            for number, expected in enumerate(entry["chunks"]):
                yield name, view[number * CHUNK : (number + 1) * CHUNK], expected


def _hash_all(parts: list[tuple[str, memoryview, str]]) -> list[str]:
    """The sha256 of each part, on all CPUs when there is more than a moment's work."""
    if sum(len(view) for _, view, _ in parts) < 2 * CHUNK:
        return [hashlib.sha256(view).hexdigest() for _, view, _ in parts]
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
        return list(threads.map(lambda part: hashlib.sha256(part[1]).hexdigest(), parts))


def _map(file: int, size: int) -> mmap.mmap:
    """The file in memory; what is not in the system's cache yet comes there in huge pages."""
    mapping = mmap.mmap(file, size, access=mmap.ACCESS_READ)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a system without huge pages
            mapping.madvise(mmap.MADV_HUGEPAGE)
    return mapping


def _manifest(path: Path, mapping: mmap.mmap, layout: dict[str, Range]) -> Manifest:
    where = layout.get("manifest.json")
    if where is None:
        raise ArtifactError(f"{path} has no manifest.json; it is not a graphwright artifact.")
    data = mapping[where.offset : where.offset + where.size]
    if zlib.crc32(data) != where.crc:
        raise ArtifactError(f"{path} is damaged: the checksum of its manifest.json is wrong.")
    try:
        found = json.loads(data)
        minimum = int(found["minimum_reader"])
        if minimum > FORMAT_VERSION:
            raise ArtifactError(
                f"{path} needs a newer graphwright: {found.get('graphwright')} wrote it for "
                f"readers of format {minimum}, this one reads up to {FORMAT_VERSION}."
            )
        manifest = Manifest(
            int(found["format_version"]),
            minimum,
            str(found["graphwright"]),
            str(found["target"]),
            tuple(found["cpu_features"]),
            read_variants(found),
            dict(found["entries"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(
            f"{path} is damaged: its manifest.json is not one ({error})."
        ) from error
    for name, entry in manifest.entries.items():
        if name not in layout:
            raise ArtifactError(f"{path} is incomplete: its entry '{name}' is missing.")
        if entry.get("bytes") != layout[name].size:
            raise ArtifactError(
                f"{path} is damaged: '{name}' has {layout[name].size} bytes instead of "
                f"{entry.get('bytes')}."
            )
    unknown = set(layout) - set(manifest.entries) - {"manifest.json"}
    if unknown:
        raise ArtifactError(
            f"{path} was changed after it was written: it has an unknown entry '{min(unknown)}'."
        )
    return manifest
