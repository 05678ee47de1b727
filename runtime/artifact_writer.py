"""Writing an artifact: a stored zip with aligned entries, hashed on the way, all of it or nothing.

The same entries in the same order give a byte-identical file: times and attributes are fixed.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from graphwright.runtime.errors import ArtifactError
from graphwright.runtime.variants import Variant
from graphwright.runtime.zip_layout import (
    COMMENT_PREFIX,
    EMPTY_COMMENT,
    aligned_extra,
    read_layout,
    structure_digest,
)

__all__ = ["CHUNK", "FORMAT_VERSION", "ArtifactWriter", "check_writable"]

FORMAT_VERSION = 5
# The first formats that may have them; artifacts without any are of format 1.
SEVERAL_VARIANTS, SLOTS, SEVERAL_POOLS, ADAPTERS = 2, 3, 4, 5
CHUNK = 16 << 20  # bytes hashed apart, so that a reader can check one entry on several threads
BLOCK = 2 << 20  # bytes of a huge page; Linux takes one for what is written of a file at once


class ArtifactWriter:
    """Context manager that writes the artifact `path` beside it and moves it there at the end.

    `variants` are what the code was compiled for, from the most capable CPU. slots: does the code
    find states before the blocks of the cache? pools: are those of several pools, each with a table
    of its own? adapters: is a step told which ones were chosen? On any error inside, nothing is
    left behind. Raises ArtifactError.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        variants: Sequence[Variant] = (Variant("any", ()),),
        slots: bool = False,
        pools: bool = False,
        adapters: bool = False,
    ) -> None:
        self.path = Path(path)
        self._temporary = self.path.with_name(f".{self.path.name}.{os.urandom(4).hex()}.partial")
        self._manifest: dict[str, Any] = {
            **_format(
                {
                    SEVERAL_VARIANTS: len(variants) > 1,
                    SLOTS: slots,
                    SEVERAL_POOLS: pools,
                    ADAPTERS: adapters,
                }
            ),
            "graphwright": _version(),
            **_targets(variants),
            "entries": {},
        }

    def __enter__(self) -> ArtifactWriter:
        check_writable(self.path)
        try:
            self._file = os.fdopen(
                os.open(self._temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666),
                "w+b",
            )
        except OSError as error:
            raise self._failure(error) from error
        self._zip = zipfile.ZipFile(self._file, "w", zipfile.ZIP_STORED, allowZip64=True)
        return self

    def add(self, name: str, content: bytes | str) -> None:
        """One entry from memory; text is stored as UTF-8."""
        data = content.encode() if isinstance(content, str) else content
        self.add_stream(name, (data,), len(data))

    def add_stream(
        self, name: str, chunks: Iterable[bytes | bytearray | memoryview], size: int
    ) -> None:
        """One entry of exactly `size` bytes from `chunks`, which are never held together."""
        if name in self._manifest["entries"] or name == "manifest.json":
            raise ArtifactError(f"the entry '{name}' is written twice into {self.path}.")
        hashes = _Hashes(split=size > CHUNK)
        entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
        entry.create_system = 3
        entry.external_attr = 0o644 << 16
        entry.file_size = size
        zip64 = size * 1.05 > zipfile.ZIP64_LIMIT  # the rule of zipfile.ZipFile.open
        if _is_mapped(name):
            entry.extra = aligned_extra(self._file.tell(), name, zip64)
        written = 0
        try:
            with self._zip.open(entry, "w", force_zip64=zip64) as stream:
                for view in _in_blocks(chunks, self._file.tell()):
                    stream.write(view)
                    hashes.update(view)
                    written += len(view)
        except OSError as error:
            raise self._failure(error) from error
        if written != size:
            raise ArtifactError(
                f"the entry '{name}' of {self.path} was announced with {size} bytes but has "
                f"{written}."
            )
        self._manifest["entries"][name] = {"bytes": size, **hashes.as_json()}

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                self._finish()
        except OSError as failure:
            raise self._failure(failure) from failure
        finally:
            self._discard()

    def _finish(self) -> None:
        manifest = json.dumps(self._manifest, indent=1)
        self._zip.writestr(zipfile.ZipInfo("manifest.json", (1980, 1, 1, 0, 0, 0)), manifest)
        self._zip.comment = EMPTY_COMMENT
        self._zip.close()
        size = self._file.seek(0, os.SEEK_END)
        layout = read_layout(self._file, size, self._temporary)
        digest = structure_digest(self._file, size, layout.values())
        self._file.seek(size - len(EMPTY_COMMENT))
        self._file.write(COMMENT_PREFIX + digest.encode())
        self._file.close()
        os.replace(self._temporary, self.path)

    def _discard(self) -> None:
        # The zip file object would write its directory when it is collected: it must not.
        self._zip.fp = None
        with suppress(OSError):
            self._file.close()
        self._temporary.unlink(missing_ok=True)

    def _failure(self, error: OSError) -> ArtifactError:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return ArtifactError(
                f"{self.path} was not written: there is no space left in {self.path.parent}. "
                "Nothing was left behind."
            )
        return ArtifactError(f"{self.path} was not written: {error.strerror or error}.")


def _in_blocks(
    chunks: Iterable[bytes | bytearray | memoryview], start: int
) -> Iterator[memoryview]:
    """The bytes of `chunks`, in pieces that end where blocks of the file do; it is at `start`.

    The system then keeps them in huge pages, from which processes read up to a fifth faster.
    """
    room, begun = BLOCK - start % BLOCK, bytearray()
    for chunk in chunks:
        rest = memoryview(chunk).cast("B")
        while len(begun) + len(rest) >= room:
            if begun:
                taken = room - len(begun)
                yield memoryview(begun + rest[:taken])
                begun = bytearray()
            else:
                taken = room + (len(rest) - room) // BLOCK * BLOCK
                yield rest[:taken]
            rest, room = rest[taken:], BLOCK
        begun += rest
    if begun:
        yield memoryview(begun)


class _Hashes:
    """sha256 of an entry and, when `split`, of each CHUNK bytes of it."""

    def __init__(self, split: bool) -> None:
        self._whole = hashlib.sha256()
        self._chunk = hashlib.sha256()
        self._room = CHUNK
        self._split = split
        self._chunks: list[str] = []

    def update(self, data: memoryview) -> None:
        self._whole.update(data)
        while self._split and data:
            part, data = data[: self._room], data[self._room :]
            self._chunk.update(part)
            self._room -= len(part)
            if not self._room:
                self._close_chunk()

    def _close_chunk(self) -> None:
        self._chunks.append(self._chunk.hexdigest())
        self._chunk = hashlib.sha256()
        self._room = CHUNK

    def as_json(self) -> dict[str, Any]:
        if self._split and self._room < CHUNK:
            self._close_chunk()
        result: dict[str, Any] = {"sha256": self._whole.hexdigest()}
        return {**result, "chunks": self._chunks} if self._split else result


def check_writable(path: str | Path) -> None:
    """Raises ArtifactError unless a file can be created at `path`; ask before long work."""
    path = Path(path)
    if path.is_dir():
        raise ArtifactError(f"{path} is a directory; name a file for the artifact.")
    if not path.parent.is_dir():
        raise ArtifactError(f"{path} cannot be written: {path.parent} is not a directory.")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise ArtifactError(f"{path} cannot be written: {path.parent} is not writable.")


def _format(has: Mapping[int, bool]) -> dict[str, int]:
    """By what there is, by the first format that may have it."""
    version = max((number for number, found in has.items() if found), default=1)
    return {"format_version": version, "minimum_reader": version}


def _targets(variants: Sequence[Variant]) -> dict[str, Any]:
    """What the manifest says: the only variant, or what all need and the list of them."""
    needed = set.intersection(*(set(each.cpu_features) for each in variants))
    common = {
        "target": ",".join(each.name for each in variants),
        "cpu_features": sorted(needed),
    }
    if len(variants) == 1:
        return common
    rows = [
        {
            "target": each.name,
            "cpu_features": sorted(each.cpu_features),
            "library": each.library,
        }
        for each in variants
    ]
    return {**common, "variants": rows}


def _is_mapped(name: str) -> bool:
    return name == "weights.bin" or name.endswith(".so")


def _version() -> str:
    from graphwright import __version__

    return __version__
