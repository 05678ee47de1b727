"""The safetensors files of a checkpoint directory: which tensors lie where, are the files whole?"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from graphwright.ir.errors import FrontendError
from graphwright.ir.weights import CheckpointTensor, ConstantTensor, Expression, TensorFile, Weight

__all__ = [
    "CheckpointFiles", "StoredTensor", "checkpoint_name", "read_json", "stored_tensors",
]  # fmt: skip

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_CACHED = re.compile(r"models--.+--(?P<name>.+)")  # of huggingface_hub: models--ORG--NAME
_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U8": torch.uint8, "BOOL": torch.bool, "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2, "F8_E8M0": torch.float8_e8m0fnu,
}  # fmt: skip


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`. Raises FrontendError when it is not one."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise FrontendError(f"{path} is not valid JSON: {error}.") from error
    if not isinstance(value, dict):
        raise FrontendError(f"{path} must hold a JSON object, not {type(value).__name__}.")
    return value


def checkpoint_name(directory: Path) -> str:
    """What a checkpoint directory is called: by its own name, but in the cache of the Hugging Face
    Hub by that of its repository, as the directories there are called by commits."""
    directory = directory.resolve()
    cached = _CACHED.fullmatch(directory.parent.parent.name)
    if cached is not None and directory.parent.name == "snapshots":
        return cached["name"]
    return directory.name


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a safetensors file, by its header. dtype: None for a type that is not read."""

    file: TensorFile
    key: str
    shape: tuple[int, ...]
    dtype: torch.dtype | None

    def reference(self) -> CheckpointTensor:
        """The tensor, not loaded. Raises FrontendError for a type that is not read."""
        if self.dtype is None:
            raise FrontendError(
                f"'{self.key}' in {self.file.path} has a type of values that is not read; known "
                f"are {', '.join(_DTYPES)}."
            )
        return CheckpointTensor(self.shape, self.dtype, self.file, self.key)


def stored_tensors(path: Path) -> list[StoredTensor]:
    """What a safetensors file holds. Raises FrontendError for one that is damaged."""
    file = TensorFile(path)
    try:
        with safe_open(path, framework="pt") as opened:
            headers = [(key, opened.get_slice(key)) for key in opened.keys()]  # noqa: SIM118
            return [
                StoredTensor(file, key, tuple(header.get_shape()), _DTYPES.get(header.get_dtype()))
                for key, header in headers
            ]
    except SafetensorError as error:
        raise FrontendError(
            f"{path} ({path.stat().st_size} bytes) is damaged or cut off: {error}. "
            f"Copy or download it again."
        ) from error


class CheckpointFiles:
    """The headers of a checkpoint's weight files; reads values only to compare them."""

    def __init__(self, directory: Path) -> None:
        """Raises FrontendError when weights are missing, incomplete or in another format."""
        self.directory = directory
        self._stored: dict[str, StoredTensor] = {}
        for path in _weight_files(directory):
            self._stored.update((each.key, each) for each in stored_tensors(path))
        self._check_index()

    def _check_index(self) -> None:
        index = self.directory / _INDEX
        if (self.directory / _SINGLE).exists() or not index.exists():
            return
        absent = sorted(set(read_json(index)["weight_map"]) - set(self._stored))
        if absent:
            raise FrontendError(
                f"{index} names {len(absent)} tensor(s) that its files do not hold, "
                f"the first is '{absent[0]}'."
            )

    def __contains__(self, key: object) -> bool:
        return key in self._stored

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def reference(self, key: str) -> CheckpointTensor:
        """The tensor `key`, not loaded. Raises FrontendError for a type that is not known."""
        return self._stored[key].reference()

    def weight(self, names: list[str], tensor: torch.Tensor) -> Weight:
        """The weight for a tensor of the loaded model that goes by `names`.

        A reference into a file when a stored tensor of that name has the same bits (possibly after
        a cast to the model's dtype); else the tensor itself, which then stays in memory.
        """
        tensor = tensor.detach()
        for key in self._candidates(names):
            stored = self._stored[key]
            if stored.shape != tuple(tensor.shape) or stored.dtype is None:
                continue
            reference = stored.reference()
            if _same_bits(reference.load().to(tensor.dtype), tensor):
                if stored.dtype == tensor.dtype:
                    return reference
                cast = torch.ops.aten._to_copy.default
                return Expression.of(cast, reference, dtype=tensor.dtype)
        return ConstantTensor.of(tensor.cpu().clone(), names[0])

    def _candidates(self, names: list[str]) -> Iterator[str]:
        """Keys called like one of `names`, then those that differ by a prefix only."""
        yield from (name for name in names if name in self._stored)
        for name in names:
            for key in self._stored:
                if key != name and (key.endswith("." + name) or name.endswith("." + key)):
                    yield key


def _weight_files(directory: Path) -> list[Path]:
    single, index = directory / _SINGLE, directory / _INDEX
    if single.exists():
        return [single]
    if index.exists():
        names = read_json(index).get("weight_map")
        if not isinstance(names, dict) or not names:
            raise FrontendError(f"{index} has no 'weight_map'.")
        files = [directory / name for name in sorted(set(names.values()))]
        for file in files:
            if not file.exists():
                raise FrontendError(f"{index} names '{file.name}', which is not in {directory}.")
        return files
    pickled = sorted(path.name for path in directory.glob("*.bin"))
    if pickled:
        raise FrontendError(
            f"{directory} holds its weights as '{pickled[0]}' only, a pickle file, which is not "
            f"read; load the model once with transformers and save it with save_pretrained, which "
            f"writes safetensors."
        )
    others = sorted(path.name for path in directory.glob("*.gguf"))
    if others:
        raise FrontendError(
            f"{directory} holds no weights beside its config.json but GGUF files: give one of "
            f"them, such as {directory / others[0]}."
        )
    raise FrontendError(f"{directory} holds no weights: expected {_SINGLE} or {_INDEX}.")


def _same_bits(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Equality of the bytes, so that NaNs are equal to themselves and 0.0 is not -0.0."""
    if first.dtype != second.dtype or first.shape != second.shape:
        return False
    by_size = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    integer = by_size[first.element_size()]
    return torch.equal(first.contiguous().view(integer), second.contiguous().view(integer))
