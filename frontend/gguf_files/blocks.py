"""Tensors of GGUF files as float weights: plain floats, integers with scales, and other blocks.

What a type of blocks stands for is the gguf package's to say. Where blocks are small integers with
one float16 scale each, weights are made of those, so that a scheme that can keep them does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize, quants

from graphwright.frontend.gguf_files.reading import GgufFile, StoredTensor
from graphwright.ir.errors import FrontendError
from graphwright.ir.stored_codes import from_codes
from graphwright.ir.weights import Expression, Weight

__all__ = ["GgufTensor", "stored_weights"]

aten = torch.ops.aten
_FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class _MappedFile:
    """A file, mapped when a tensor of it is first read and for as long as this lives."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def bytes(self) -> np.memmap[tuple[int], np.dtype[np.uint8]]:
        return np.memmap(self.path, np.uint8, mode="c")


@dataclass(frozen=True, eq=False)
class GgufTensor(Weight):
    """What a file holds for one tensor: floats of its shape, or uint8, rows of blocks."""

    file: _MappedFile
    offset: int
    name: str

    def load(self) -> torch.Tensor:
        stored = self.file.bytes[self.offset : self.offset + self.nbytes]
        return torch.from_numpy(np.asarray(stored)).view(self.dtype).view(self.shape)

    def describe(self) -> str:
        return f"{self.file.path.name}:{self.name}"


def stored_weights(model: GgufFile) -> dict[str, Weight]:
    """Every tensor as float32 of its shape, by its name. Nothing is read.

    Raises FrontendError for a type that the gguf package has no values for.
    """
    files = {tensor.path: _MappedFile(tensor.path) for tensor in model.tensors.values()}
    return {name: _weight(tensor, files[tensor.path]) for name, tensor in model.tensors.items()}


def _weight(tensor: StoredTensor, file: _MappedFile) -> Weight:
    dtype = _FLOATS.get(tensor.kind)
    if dtype is not None:
        plain = GgufTensor(tensor.shape, dtype, file, tensor.offset, tensor.name)
        if dtype == torch.float32:
            return plain
        return Expression.of(aten._to_copy.default, plain, dtype=torch.float32)
    if not _has_values(tensor.kind):
        raise FrontendError(
            f"'{tensor.name}' in '{tensor.path}' is of the type {tensor.kind}, which the package "
            "gguf cannot read; give a file of another type, or the original checkpoint."
        )
    values, size = GGML_QUANT_SIZES[GGMLQuantizationType[tensor.kind]]
    *outer, inputs = tensor.shape
    shape = (math.prod(outer), inputs // values * size)
    blocks = GgufTensor(shape, torch.uint8, file, tensor.offset, tensor.name)
    rows = _rows(blocks, tensor.kind, size)
    return rows if len(outer) == 1 else Expression.of(aten.view.default, rows, list(tensor.shape))


def _rows(blocks: Weight, kind: str, size: int) -> Expression:
    """float32 [N, K] of rows of blocks, which have `size` bytes each."""
    if kind not in _CODES:
        return Expression.of(_dequantized, blocks, kind)
    unpack, zero, bits = _CODES[kind]
    codes = Expression.of(unpack, blocks, size)
    scales = Expression.of(_scales, blocks, size)
    return Expression.of(from_codes, codes, scales, zero, bits=bits)


@cache
def _has_values(kind: str) -> bool:
    """Does gguf say what blocks of this type stand for?"""
    type_ = GGMLQuantizationType[kind]
    try:
        dequantize(np.zeros((1, GGML_QUANT_SIZES[type_][1]), np.uint8), type_)
    except NotImplementedError:
        return False
    return True


def _dequantized(blocks: torch.Tensor, kind: str) -> torch.Tensor:
    """uint8 [N, B * size], rows of blocks -> their values, float32 [N, K]."""
    type_ = GGMLQuantizationType[kind]
    values, size = GGML_QUANT_SIZES[type_]
    if blocks.device.type == "meta":
        shape = (*blocks.shape[:-1], blocks.shape[-1] // size * values)
        return torch.empty(shape, dtype=torch.float32, device="meta")
    return torch.from_numpy(dequantize(blocks.numpy(), type_))


def _scales(blocks: torch.Tensor, size: int) -> torch.Tensor:
    """uint8 [N, B * size] -> float16 [N, B], which each block begins with."""
    return _by_block(blocks, size)[..., :2].contiguous().view(torch.float16)[..., 0]


def _bytes(blocks: torch.Tensor, size: int) -> torch.Tensor:
    """uint8 [N, B * size] -> int8 [N, B * 32], one byte each behind the scale."""
    return _by_block(blocks, size)[..., 2:].contiguous().view(torch.int8).flatten(1)


def _nibbles(blocks: torch.Tensor, size: int) -> torch.Tensor:
    """uint8 [N, B * size] -> uint8 [N, B * 32]: the low halves of sixteen bytes, then the high."""
    packed = _by_block(blocks, size)[..., 2:]
    return torch.cat((packed & 15, packed >> 4), dim=-1).flatten(1)


def _by_block(blocks: torch.Tensor, size: int) -> torch.Tensor:
    return blocks.view(blocks.shape[0], -1, size)


def _fives(blocks: torch.Tensor, size: int) -> torch.Tensor:
    """As `_nibbles`, with a fifth bit of each from the four bytes behind the scale."""
    parts = _by_block(blocks, size)
    places = torch.arange(8, dtype=torch.uint8, device=blocks.device)
    fifth = ((parts[..., 2:6, None] >> places) & 1).flatten(-2)
    packed = parts[..., 6:]
    return (torch.cat((packed & 15, packed >> 4), dim=-1) | fifth << 4).flatten(1)


def _levels(blocks: torch.Tensor, size: int) -> torch.Tensor:
    """uint8 [N, B * size] -> int8 [N, B * 32]: the levels that the nibbles stand for."""
    levels = torch.tensor(quants.IQ4_NL.kvalues, dtype=torch.int8, device=blocks.device)
    return levels[_nibbles(blocks, size).long()]


_CODES = {
    "Q8_0": (_bytes, 0, 8),
    "Q5_0": (_fives, 16, 5),
    "Q4_0": (_nibbles, 8, 4),
    "IQ4_NL": (_levels, 0, 8),
}
"""Types with codes in groups of 32: what unpacks them, the code of zero, and the bits."""
