"""numpy arrays that stand for weights: what is done to them is done to recorded tensors instead.

transformers turns most tensors of GGUF files into its own by numpy, with values at hand. Given
these, the same code says what is to be done, and nothing is read. Where it goes on in torch it gets
recorded tensors, and canvases in place of tensors that it fills part by part.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

__all__ = ["Canvas", "RecordedArray", "RecordingTorch"]


class RecordedArray:
    """A float32 array without memory over a recorded tensor. What is not known of numpy here raises
    NotImplementedError, with its name."""

    dtype = np.dtype(np.float32)

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape)

    @property
    def ndim(self) -> int:
        return self.tensor.dim()

    @property
    def T(self) -> RecordedArray:
        return RecordedArray(self.tensor.permute(tuple(reversed(range(self.ndim)))))

    def reshape(self, *shape: Any) -> RecordedArray:
        sizes = shape[0] if len(shape) == 1 and isinstance(shape[0], tuple) else shape
        return RecordedArray(self.tensor.reshape([int(size) for size in sizes]))

    def swapaxes(self, first: int, second: int) -> RecordedArray:
        return RecordedArray(self.tensor.transpose(first, second))

    def flatten(self) -> RecordedArray:
        return RecordedArray(self.tensor.reshape([-1]))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> RecordedArray:
        return RecordedArray(self.tensor[index])

    def __neg__(self) -> RecordedArray:
        return RecordedArray(-self.tensor)

    def __add__(self, other: float) -> RecordedArray:
        return RecordedArray(self.tensor + other)

    def __sub__(self, other: float) -> RecordedArray:
        return RecordedArray(self.tensor - other)

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        function = _UFUNCS.get(ufunc)
        if function is None or method != "__call__" or kwargs:
            raise NotImplementedError(f"numpy's {ufunc.__name__} on a tensor that is not loaded")
        return RecordedArray(function(*(_tensor(each) for each in inputs)))

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        known = _FUNCTIONS.get(function)
        if known is None:
            raise NotImplementedError(f"numpy's {function.__name__} on a tensor that is not loaded")
        return known(*args, **kwargs)


class Canvas:
    """A tensor of zeros that is to be filled part by part along one dimension."""

    def __init__(self, shape: Sequence[int]) -> None:
        self.shape = tuple(shape)
        self._parts: dict[int, torch.Tensor] = {}
        self._dim = 0

    def narrow(self, dim: int, start: int, length: int) -> _Part:
        """A part, which gets its values by `copy_`."""
        self._dim = dim
        return _Part(self._parts, start)

    def tensor(self) -> torch.Tensor:
        """Its parts, joined. Raises ValueError where some of it was not filled."""
        parts = [self._parts[start] for start in sorted(self._parts)]
        joined = torch.cat(parts, self._dim) if parts else torch.zeros(0)
        if tuple(joined.shape) != self.shape:
            raise ValueError(f"parts of a tensor {list(self.shape)} are missing")
        return joined


class _Part:
    def __init__(self, parts: dict[int, torch.Tensor], start: int) -> None:
        self._parts, self._start = parts, start

    def copy_(self, source: torch.Tensor) -> None:
        self._parts[self._start] = source


class RecordingTorch:
    """torch, for a module that makes tensors of arrays: of recorded arrays recorded tensors."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    @staticmethod
    def from_numpy(array: Any) -> torch.Tensor:
        return array.tensor if isinstance(array, RecordedArray) else torch.from_numpy(array)

    @staticmethod
    def zeros(shape: Sequence[int], **_: Any) -> Canvas:
        return Canvas(shape)


def _tensor(value: Any) -> Any:
    return value.tensor if isinstance(value, RecordedArray) else value


def _stack(arrays: Sequence[RecordedArray], axis: int = 0) -> RecordedArray:
    return RecordedArray(torch.stack([each.tensor for each in arrays], axis))


def _concatenate(arrays: Sequence[RecordedArray], axis: int = 0) -> RecordedArray:
    return RecordedArray(torch.cat([each.tensor for each in arrays], axis))


def _split(array: RecordedArray, sections: Any, axis: int = 0) -> list[RecordedArray]:
    return [RecordedArray(each) for each in torch.tensor_split(array.tensor, sections, axis)]


_UFUNCS: dict[Any, Callable[..., torch.Tensor]] = {
    np.log: torch.log,
    np.exp: torch.exp,
    np.negative: torch.neg,
    np.add: torch.add,
    np.subtract: torch.sub,
}
_FUNCTIONS: dict[Any, Callable[..., Any]] = {
    np.copy: lambda array: array,
    np.expand_dims: lambda array, axis: RecordedArray(array.tensor.unsqueeze(axis)),
    np.array_split: _split,
    np.split: _split,
    np.stack: _stack,
    np.concatenate: _concatenate,
    np.transpose: lambda array: array.T,
}
