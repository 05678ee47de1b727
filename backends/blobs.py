"""Packed weights: which weight lies where in the weights region, and in which layout.

Nothing is loaded until `chunks` streams the region, one weight after the other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from graphwright.ir.ahead import ahead
from graphwright.ir.errors import BackendError
from graphwright.ir.memory import align
from graphwright.ir.weights import CheckpointTensor, ConstantTensor, Expression, Weight

__all__ = ["Blob", "BlobTable", "Layout", "dense", "identity"]

_NUMPY = {torch.bfloat16: torch.int16}  # numpy has no bfloat16
PIECE = 32 << 20  # elements of a weight that are packed at once


@dataclass(frozen=True)
class Layout:
    """How a kernel wants a weight. `pack` may be called on slices of `rows_multiple` rows.

    rows_multiple 0: only on the whole weight. `size` is the packed size in bytes for a shape.
    """

    name: str
    dtype: str
    size: Callable[[tuple[int, ...]], int]
    pack: Callable[[torch.Tensor], np.ndarray]
    rows_multiple: int = 0


def dense(dtype: torch.dtype = torch.float32) -> Layout:
    """The weight as it is, row by row, converted to `dtype`."""
    name = str(dtype).removeprefix("torch.")
    return Layout(
        "dense" if dtype is torch.float32 else f"dense-{name}",
        name,
        lambda shape: math.prod(shape) * dtype.itemsize,
        lambda tensor: tensor.to(dtype).contiguous().view(_NUMPY.get(dtype, dtype)).numpy(),
        rows_multiple=1,
    )


@dataclass(frozen=True)
class Blob:
    """One packed weight. read: bytes that a decoded token reads of it."""

    name: str
    weight: Weight
    layout: Layout
    bytes: int
    read: int


class BlobTable:
    """The blobs of one library, in the order in which decoding reads them."""

    def __init__(self) -> None:
        self._blobs: dict[Any, Blob] = {}
        self._keys: dict[str, Any] = {}

    def add(self, name: str, weight: Weight, layout: Layout, read: int | None = None) -> str:
        """The name of the blob of `weight` in `layout`, the same for an equal weight.

        read: bytes one token reads of it; None for all. Where several readers share a blob, it lies
        at the place of the one that reads the most.
        """
        key = (identity(weight), layout.name)
        size = layout.size(weight.shape)
        read = size if read is None else read
        known = self._blobs.get(key)
        if known is None:
            unique, number = name, 1
            while unique in self._keys:
                unique, number = f"{name}_{number}", number + 1
            self._keys[unique] = key
            self._blobs[key] = Blob(unique, weight, layout, size, read)
        elif read > known.read:
            del self._blobs[key]
            self._blobs[key] = replace(known, read=read)
        return self._blobs[key].name

    def offsets(self) -> dict[str, int]:
        """Where each blob starts in the region, by name."""
        result, end = {}, 0
        for blob in self._blobs.values():
            result[blob.name] = end
            end = align(end + blob.bytes)
        return result

    @property
    def bytes(self) -> int:
        """Size of the region."""
        return sum(align(blob.bytes) for blob in self._blobs.values())

    @property
    def bytes_per_token(self) -> int:
        """Bytes of weights that decoding one token reads."""
        return sum(blob.read for blob in self._blobs.values())

    def weights(self) -> list[Weight]:
        """What is packed, in order."""
        return [blob.weight for blob in self._blobs.values()]

    def describe(self) -> list[dict[str, Any]]:
        """The blobs for plan.json."""
        offsets = self.offsets()
        return [
            {
                "name": blob.name,
                "offset": offsets[blob.name],
                "bytes": blob.bytes,
                "layout": blob.layout.name,
                "dtype": blob.layout.dtype,
                "scheme": blob.weight.scheme,
                "read": blob.read,
                "source": blob.weight.describe(),
            }
            for blob in self._blobs.values()
        ]

    def chunks(self, on_blob: Callable[[str], None] | None = None) -> Iterator[memoryview]:
        """The region from its start to its end in pieces. A few weights are in memory at a time."""
        blobs = list(self._blobs.values())
        for blob, pieces in zip(blobs, ahead(_pieces, blobs), strict=True):
            if on_blob:
                on_blob(blob.name)
            written = sum(len(piece) for piece in pieces)
            if written != blob.bytes:
                raise BackendError(
                    f"weight '{blob.name}' {blob.weight.shape} packs into {written} bytes in "
                    f"layout '{blob.layout.name}', {blob.bytes} were planned."
                )
            yield from pieces
            yield memoryview(bytes(align(written) - written))


def _pieces(blob: Blob) -> list[memoryview]:
    """Its packed bytes."""
    return [np.ascontiguousarray(array).reshape(-1).view(np.uint8).data for array in _packed(blob)]


def _packed(blob: Blob) -> Iterator[np.ndarray]:
    tensor = blob.weight.load().detach()
    if tuple(tensor.shape) != blob.weight.shape:
        raise BackendError(
            f"weight '{blob.name}' is {tuple(tensor.shape)}, not {blob.weight.shape}, in "
            f"{blob.weight.describe()}."
        )
    multiple = blob.layout.rows_multiple
    if not multiple or tensor.dim() < 2 or tensor.numel() <= PIECE:
        yield blob.layout.pack(tensor)
        return
    rows = max(1, PIECE // (tensor.numel() // tensor.shape[0]) // multiple) * multiple
    for first in range(0, tensor.shape[0], rows):
        yield blob.layout.pack(tensor[first : first + rows])


def identity(weight: Any) -> Any:
    """A key that is equal for weights that come from the same place by the same functions."""
    if isinstance(weight, CheckpointTensor):
        return ("file", str(weight.file.path), weight.key)
    if isinstance(weight, ConstantTensor):
        tensor = weight.tensor
        return (
            "tensor",
            tensor.data_ptr() or id(tensor),
            weight.shape,
            tensor.stride(),
            weight.dtype,
        )
    if isinstance(weight, Expression):
        function = getattr(weight.function, "_schema", None) or weight.function
        parts = tuple(identity(each) for each in (*weight.args, *sorted(weight.kwargs.items())))
        return ("expression", str(function), id(weight.function), parts, weight.output)
    if isinstance(weight, (list, tuple)):
        return tuple(identity(each) for each in weight)
    return repr(weight)
