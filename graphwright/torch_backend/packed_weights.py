"""Weights of a part as its code wants them: packed once, and again when a tensor was changed."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from graphwright.runtime.memory import Memory
from graphwright.torch_backend.part_code import PartCode

__all__ = ["PackedWeights", "packed"]


class PackedWeights:
    """The weights region of one part, at `address`."""

    def __init__(self, code: PartCode, tensors: Sequence[torch.Tensor]) -> None:
        self._ids = tuple(map(id, tensors))
        self._versions = _versions(tensors)
        self._gone = False
        self._seen = [weakref.ref(each, self._forget) for each in tensors]
        size = max(code.blobs.bytes, 1)
        self.region: NDArray[Any] = Memory({"weights": size}).allocate("weights", size)
        self.address: int = self.region.ctypes.data
        end = 0
        with code.lock, torch.no_grad():
            code.tensors.values = [each.detach() for each in tensors]
            try:
                for piece in code.blobs.chunks():
                    self.region[end : end + len(piece)] = np.frombuffer(piece, np.uint8)
                    end += len(piece)
            finally:
                code.tensors.values = ()

    def fit(self, tensors: Sequence[torch.Tensor]) -> bool:
        """Are these the tensors that were packed, and was nothing written to them since?"""
        return (
            tuple(map(id, tensors)) == self._ids
            and not self._gone
            and _versions(tensors) == self._versions
        )

    def _forget(self, tensor: object) -> None:
        self._gone = True  # what has its id from now on is another one


_PACKED: weakref.WeakValueDictionary[tuple[int, ...], PackedWeights] = weakref.WeakValueDictionary()


def packed(code: PartCode, tensors: Sequence[torch.Tensor]) -> PackedWeights:
    """The packed weights of `code`; several graphs of a model have one region for the same part."""
    key = (id(code), *map(id, tensors))
    known = _PACKED.get(key)
    if known is None or not known.fit(tensors):
        known = _PACKED[key] = PackedWeights(code, tensors)
    return known


def _versions(tensors: Sequence[torch.Tensor]) -> list[int]:
    """They rise with every write in place; tensors made in inference mode do not count them."""
    try:
        return [each._version for each in tensors]
    except RuntimeError:
        return [-1 if each.is_inference() else each._version for each in tensors]
