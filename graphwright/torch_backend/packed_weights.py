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
    """The weights region of one part. `fits` says whether it holds what the tensors hold now."""

    def __init__(self, code: PartCode, tensors: Sequence[torch.Tensor]) -> None:
        self._seen = [(weakref.ref(each), _version(each)) for each in tensors]
        size = max(code.blobs.bytes, 1)
        self.region: NDArray[Any] = Memory({"weights": size}).allocate("weights", size)
        end = 0
        with code.lock, torch.no_grad():
            code.tensors.values = [each.detach() for each in tensors]
            try:
                for piece in code.blobs.chunks():
                    self.region[end : end + len(piece)] = np.frombuffer(piece, np.uint8)
                    end += len(piece)
            finally:
                code.tensors.values = ()

    def fits(self, tensors: Sequence[torch.Tensor]) -> bool:
        """Are these the tensors that were packed, and was nothing written to them since?"""
        return all(
            known() is each and version == _version(each)
            for (known, version), each in zip(self._seen, tensors, strict=True)
        )


_PACKED: weakref.WeakValueDictionary[tuple[int, ...], PackedWeights] = weakref.WeakValueDictionary()


def packed(code: PartCode, tensors: Sequence[torch.Tensor]) -> PackedWeights:
    """The packed weights of `code`; several graphs of a model have one region for the same part."""
    key = (id(code), *map(id, tensors))
    known = _PACKED.get(key)
    if known is None or not known.fits(tensors):
        known = _PACKED[key] = PackedWeights(code, tensors)
    return known


def _version(tensor: torch.Tensor) -> int:
    """Rises with every write in place; tensors made in inference mode do not count them."""
    return -1 if tensor.is_inference() else tensor._version
