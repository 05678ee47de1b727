"""What a reduction along axes of fixed size goes over."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx

from graphwright.backends.regions.index import Index, unflatten
from graphwright.backends.regions.operands import dtype_name
from graphwright.backends.regions.shapes import Arguments, refuse, shape_of

__all__ = ["Reduced"]


@dataclass(frozen=True)
class Reduced:
    """The elements of `source` that one element of a reduction's result comes from.

    indices: of the source, None along the `axes` that are reduced, which have `sizes`; together
    they are `count` terms. dtype: that of the result.
    """

    source: Any
    axes: tuple[int, ...]
    sizes: tuple[int, ...]
    indices: tuple[Index | None, ...]
    dtype: str

    @classmethod
    def of(cls, node: fx.Node, given: Arguments, indices: Sequence[Index]) -> Reduced:
        """For the element `indices` of the result of `node`. Raises BackendError."""
        source = given["self"]
        shape, dims = shape_of(source), given.get("dim")
        dims = [dims] if isinstance(dims, int) else (dims or range(len(shape)))
        axes = sorted(dim % len(shape) for dim in dims)
        sizes = [size for axis in axes if (size := shape[axis]) is not None]
        if len(sizes) < len(axes):
            raise refuse(node, "reduces the rows")
        kept, same = iter(indices), len(indices) == len(shape)
        at: list[Index | None] = []
        for axis in range(len(shape)):
            own = next(kept) if same or axis not in axes else None
            at.append(None if axis in axes else own)
        dtype = dtype_name(node.meta["val"].dtype)
        return cls(source, tuple(axes), tuple(sizes), tuple(at), dtype)

    @property
    def count(self) -> int:
        """How many terms there are."""
        return math.prod(self.sizes)

    @property
    def fixed(self) -> list[Index]:
        """The indices along the other axes."""
        return [index for index in self.indices if index is not None]

    @property
    def lowest(self) -> float:
        """What every term is larger than, or equal to."""
        return -math.inf if self.dtype.startswith("float") else -(2**31)

    @property
    def highest(self) -> float:
        """What every term is smaller than, or equal to."""
        return math.inf if self.dtype.startswith("float") else 2**31 - 1

    def term(self, number: Index) -> list[Index]:
        """The indices of term `number`."""
        digits = iter(unflatten(number, list(self.sizes)))
        return [next(digits) if index is None else index for index in self.indices]

    def key(self, kind: str) -> tuple[Any, ...]:
        """Equal for equal reductions of the same `kind`."""
        return (kind, self.source, self.dtype, *self.axes, *self.indices)
