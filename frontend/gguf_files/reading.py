"""A GGUF file, or the parts of a split one: what its header says and where each tensor lies.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from struct import unpack_from
from typing import Any

import numpy as np
from gguf import GGUFReader, GGUFValueType

from graphwright.ir.errors import FrontendError

__all__ = ["GgufFile", "StoredTensor", "read_gguf"]

_PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")
_NO_MODEL = {
    "adapter": "a LoRA adapter and no model: merge it into its model first",
    "mmproj": "the part of a model that reads images or sound: give the file of the text model",
    "imatrix": "an importance matrix for quantizing and no model: give the file of the model",
    "vocab": "a vocabulary and no weights: give the file of the model",
}


@dataclass(frozen=True)
class StoredTensor:
    """Where the bytes of a tensor lie. shape: of its values, rows first. kind: such as `Q4_0`."""

    name: str
    kind: str
    shape: tuple[int, ...]
    path: Path
    offset: int
    nbytes: int


@dataclass(frozen=True)
class GgufFile:
    """path: as it was given. metadata: by key; arrays of texts only as the number of them."""

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, StoredTensor]

    @property
    def architecture(self) -> str:
        """What the file calls the architecture of its model."""
        return str(self.metadata["general.architecture"])

    @property
    def name(self) -> str:
        """The name of the file, without what numbers its parts."""
        match = _PART.fullmatch(self.path.name)
        return match["stem"] if match else self.path.stem


class _Header(GGUFReader):  # type: ignore[misc]
    """GGUFReader, which makes an array of each text of a vocabulary: here they are only counted."""

    def _get_field_parts(self, orig_offs: int, raw_type: int) -> Any:
        if raw_type != GGUFValueType.ARRAY or self.byte_order != "I":
            return super()._get_field_parts(orig_offs, raw_type)
        kind, count = unpack_from("<IQ", self.data, orig_offs)
        if kind != GGUFValueType.STRING:
            return super()._get_field_parts(orig_offs, raw_type)
        end = orig_offs + 12
        for _ in range(count):
            end += 8 + unpack_from("<Q", self.data, end)[0]
        counted = np.array([count], np.uint64)
        return end - orig_offs, [counted], [0], [GGUFValueType.UINT64]


def read_gguf(path: Path) -> GgufFile:
    """The header of a GGUF file, and those of its other parts where `path` is the first of several.

    Raises FrontendError, one sentence, for files that are damaged, cut off, or hold no model.
    """
    metadata, tensors = _read(path)
    count = int(metadata.get("split.count", 1))
    parts = _other_parts(path, metadata, count)
    _check_holds_model(path, metadata, len(tensors), count)
    for part in parts:
        tensors |= _read(part)[1]
    expected = int(metadata.get("split.tensors.count", len(tensors)))
    if len(tensors) != expected:
        raise FrontendError(
            f"the {count} parts of '{path}' hold {len(tensors)} tensors, and {expected} were "
            "split: they are not of one model, or damaged. Copy or download them again."
        )
    return GgufFile(path, metadata, tensors)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, StoredTensor]]:
    """The metadata and the tensors of one file."""
    if not path.is_file():
        raise FrontendError(f"there is no file '{path}'.")
    size = path.stat().st_size
    try:
        reader = _Header(path)
        fields = {name: field.contents() for name, field in reader.fields.items()}
        tensors = _tensors(path, reader)
    except Exception as error:
        with path.open("rb") as file:
            if file.read(4) != b"GGUF":
                raise FrontendError(
                    f"'{path}' ({size} bytes) does not begin like a GGUF file."
                ) from error
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise FrontendError(
            f"'{path}' ({size} bytes) is damaged, cut off, or of a version that is not read: "
            f"{reason}. Copy or download it again."
        ) from error
    if reader.byte_order != "I":
        raise FrontendError(f"'{path}' has its bytes in the order of another kind of machine.")
    return {name: each for name, each in fields.items() if not name.startswith("GGUF.")}, tensors


def _check_holds_model(path: Path, metadata: dict[str, Any], tensors: int, parts: int) -> None:
    architecture = metadata.get("general.architecture")
    if not isinstance(architecture, str):
        raise FrontendError(f"'{path}' does not say its architecture (general.architecture).")
    kind = metadata.get("general.type", "model")
    if architecture == "clip":  # files from before general.type
        kind = "mmproj"
    if kind in _NO_MODEL:
        raise FrontendError(f"'{path}' holds {_NO_MODEL[kind]}.")
    if not tensors and parts == 1:
        raise FrontendError(f"'{path}' holds {_NO_MODEL['vocab']}.")


def _other_parts(path: Path, metadata: dict[str, Any], count: int) -> list[Path]:
    """The other parts of a split model, of which `path` must be the first."""
    if count <= 1:
        return []
    match = _PART.fullmatch(path.name)
    if match is None or int(match["count"]) != count:
        raise FrontendError(
            f"'{path}' is one of {count} parts, which are found by their names: NAME-00001-of-"
            f"{count:05d}.gguf and so on, in one directory."
        )

    def part(number: int) -> Path:
        return path.with_name(f"{match['stem']}-{number:05d}-of-{match['count']}.gguf")

    if int(metadata.get("split.no", 0)) != 0:
        raise FrontendError(
            f"'{path}' is part {match['number']} of {count}: give the first, '{part(1)}'."
        )
    parts = [part(number) for number in range(2, count + 1)]
    absent = [each.name for each in parts if not each.is_file()]
    if absent:
        raise FrontendError(
            f"'{path}' is the first of {count} parts, and {', '.join(absent)} "
            f"{'is' if len(absent) == 1 else 'are'} not beside it."
        )
    return parts


def _tensors(path: Path, reader: GGUFReader) -> dict[str, StoredTensor]:
    place: Callable[[Any], int] = int
    return {
        each.name: StoredTensor(
            each.name,
            each.tensor_type.name,
            tuple(place(size) for size in reversed(each.shape)),
            path,
            place(each.data_offset),
            place(each.n_bytes),
        )
        for each in reader.tensors
    }
