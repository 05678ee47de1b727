"""Weights of a part as its code wants them: packed once, and again when a tensor was changed."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils import _pytree as pytree

from graphwright.ir.weights import Expression
from graphwright.passes.quantized_part import QuantizedPart
from graphwright.runtime.memory import Memory
from graphwright.torch_backend.part_code import PartCode

__all__ = ["PackedWeights", "forget_packed", "packed"]


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
            _forget_quantized(code.blobs.weights())
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


def forget_packed() -> None:
    """Whoever asks from now on gets weights packed anew."""
    _PACKED.clear()


def _forget_quantized(weights: Iterable[Any]) -> None:
    """Quantizations whose results are asked for one by one compute them anew."""
    for weight in weights:
        if isinstance(weight, QuantizedPart):
            weight.quantization.forget()
        if isinstance(weight, Expression):
            _forget_quantized(pytree.tree_leaves((weight.args, weight.kwargs)))


def _versions(tensors: Sequence[torch.Tensor]) -> list[tuple[int, int]]:
    """Where the values lie, and a number that rises with every write to the tensor in place; not
    with writes to its `.data`, and not for tensors that were made in inference mode."""
    try:
        return [(each.data_ptr(), each._version) for each in tensors]
    except RuntimeError:
        return [(t.data_ptr(), -1 if t.is_inference() else t._version) for t in tensors]
