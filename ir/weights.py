"""Weights as lazy expressions: references into checkpoint files, and functions of them.

Nothing is read when a weight is created. `load` materialises one weight for as long as the caller
holds it; the packing stage streams them one at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch.utils import _pytree as pytree

__all__ = [
    "CheckpointTensor",
    "ConstantTensor",
    "Expression",
    "TensorFile",
    "Weight",
    "WeightStore",
]


@dataclass(frozen=True, eq=False)
class Weight:
    """A tensor to be had on demand: shape and dtype are known, the values are not loaded."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    def load(self) -> torch.Tensor:
        """The values, on CPU. Each call may read and compute them anew."""
        raise NotImplementedError

    @property
    def nbytes(self) -> int:
        """Size of the loaded tensor in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def describe(self) -> str:
        """Where the values come from, as short text."""
        raise NotImplementedError

    @property
    def scheme(self) -> str | None:
        """By which scheme of a recipe its values are stored; None where no recipe says so."""
        return None


class TensorFile:
    """A safetensors file, mapped when a tensor of it is first read and for as long as this lives:
    each opening reads the names and shapes of all tensors in it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def _opened(self) -> Any:
        from safetensors import safe_open

        return safe_open(self.path, framework="pt")

    def read(self, key: str) -> torch.Tensor:
        """The tensor `key`, whose memory is the file's. Raises SafetensorError or OSError."""
        tensor: torch.Tensor = self._opened.get_tensor(key)
        return tensor


@dataclass(frozen=True, eq=False)
class CheckpointTensor(Weight):
    """The tensor `key` of a file, mapped when loaded."""

    file: TensorFile
    key: str

    def load(self) -> torch.Tensor:
        return self.file.read(self.key)

    def describe(self) -> str:
        return f"{self.file.path.name}:{self.key}"


@dataclass(frozen=True, eq=False)
class ConstantTensor(Weight):
    """A tensor that lives in memory: a module's parameter, a buffer, a folded constant."""

    tensor: torch.Tensor
    origin: str = "constant"

    @staticmethod
    def of(tensor: torch.Tensor, origin: str = "constant") -> ConstantTensor:
        """Wraps `tensor`, detached and not copied."""
        tensor = tensor.detach()
        return ConstantTensor(tuple(tensor.shape), tensor.dtype, tensor, origin)

    def load(self) -> torch.Tensor:
        return self.tensor

    def describe(self) -> str:
        return self.origin


@dataclass(frozen=True, eq=False)
class Expression(Weight):
    """`function(*args, **kwargs)` (its output number `output` when it returns several).

    `args` may hold other weights, also inside lists. Inputs are loaded, used and dropped.
    """

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)
    output: int | None = None

    @staticmethod
    def of(
        function: Callable[..., Any], *args: Any, output: int | None = None, **kwargs: Any
    ) -> Expression:
        """Builds the expression; shape and dtype come from running `function` on meta tensors."""
        meta = pytree.tree_map_only(
            Weight, lambda w: torch.empty(w.shape, dtype=w.dtype, device="meta"), (args, kwargs)
        )
        result = function(*meta[0], **meta[1])
        if output is not None:
            result = result[output]
        return Expression(tuple(result.shape), result.dtype, function, args, kwargs, output)

    def load(self) -> torch.Tensor:
        args, kwargs = pytree.tree_map_only(Weight, lambda w: w.load(), (self.args, self.kwargs))
        result = self.function(*args, **kwargs)
        tensor: torch.Tensor = result if self.output is None else result[self.output]
        return tensor

    @property
    def scheme(self) -> str | None:
        leaves = pytree.tree_leaves((self.args, self.kwargs))
        found = {leaf.scheme for leaf in leaves if isinstance(leaf, Weight)} - {None}
        return found.pop() if len(found) == 1 else None

    def describe(self) -> str:
        name = getattr(self.function, "_schema", None)
        text = name.name if name is not None else getattr(self.function, "__name__", "function")
        leaves = pytree.tree_leaves((self.args, self.kwargs))
        inputs = [leaf.describe() for leaf in leaves if isinstance(leaf, Weight)]
        return f"{text.split('::')[-1]}({', '.join(inputs)})"


class WeightStore:
    """The weights of one program by name, in the order they were added."""

    def __init__(self) -> None:
        self._weights: dict[str, Weight] = {}

    def __getitem__(self, name: str) -> Weight:
        return self._weights[name]

    def __setitem__(self, name: str, weight: Weight) -> None:
        self._weights[name] = weight

    def __delitem__(self, name: str) -> None:
        del self._weights[name]

    def __contains__(self, name: str) -> bool:
        return name in self._weights

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)

    def items(self) -> Iterator[tuple[str, Weight]]:
        """Names and weights, in order."""
        return iter(self._weights.items())

    def unique_name(self, stem: str) -> str:
        """`stem`, made a Python identifier, with a number when it is taken."""
        stem = "".join(c if c.isalnum() else "_" for c in stem).strip("_") or "weight"
        stem = f"w_{stem}" if stem[0].isdigit() else stem
        name, number = stem, 1
        while name in self._weights:
            name, number = f"{stem}_{number}", number + 1
        return name

    @property
    def nbytes(self) -> int:
        """Bytes of all weights if each were loaded."""
        return sum(weight.nbytes for weight in self._weights.values())

    def copy(self) -> WeightStore:
        """A store with the same weights; they are immutable and shared."""
        other = WeightStore()
        other._weights = dict(self._weights)
        return other
