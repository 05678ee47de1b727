"""Memory of the engine: page-aligned, allocated once, taken from the system only when touched."""

from __future__ import annotations

import mmap
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from graphwright.runtime.errors import RequestError

__all__ = ["ALIGNMENT", "Memory", "is_aligned"]

ALIGNMENT = 64  # bytes; compiled code loads vectors from the start of every buffer
_HUGE = 2 << 20


@dataclass
class Memory:
    """Named allocations against a plan of bytes for each name. Mapped files are only counted."""

    planned: dict[str, int]
    allocated: dict[str, int] = field(default_factory=dict)

    def allocate(self, name: str, count: int, dtype: DTypeLike = np.uint8) -> NDArray[Any]:
        """`count` zeros of `dtype`, page-aligned. Raises RequestError if there is no memory."""
        kind = np.dtype(dtype)
        size = count * kind.itemsize
        self.count(name, size)
        try:
            flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
            mapping = mmap.mmap(-1, max(size, 1), flags=flags)
        except (OSError, OverflowError, ValueError) as error:
            raise RequestError(
                f"cannot reserve {size / 2**20:.0f} MiB of memory for {name}: fewer sequences or a "
                f"shorter context need less ({error})."
            ) from error
        if size >= _HUGE and hasattr(mmap, "MADV_HUGEPAGE"):
            mapping.madvise(mmap.MADV_HUGEPAGE)
        return np.frombuffer(mapping, kind, count)

    def count(self, name: str, size: int) -> None:
        """Adds `size` bytes to what `name` uses; more than planned is a mistake of ours."""
        self.allocated[name] = self.allocated.get(name, 0) + size
        assert self.allocated[name] <= self.planned[name], (
            f"{name} takes {self.allocated[name]} bytes, the plan has {self.planned[name]}"
        )


def is_aligned(array: NDArray[Any]) -> bool:
    """May compiled code be given this array?"""
    return bool(array.ctypes.data % ALIGNMENT == 0 and array.flags.c_contiguous)
