"""Memory of which every access is checked: global buffers by name, and shared memory."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from ptx_values import Array

__all__ = ["BASE_ALIGNMENT", "GlobalMemory", "PtxError", "SharedMemory"]

BASE_ALIGNMENT = 16  # what kernels are told of pointers: addresses are multiples of no more
_SPAN = 40  # bits of an address that say where in a buffer


class PtxError(Exception):
    """What a GPU would not do, or would do wrongly."""


class SharedMemory:
    """`size` bytes at address 0, full of 0xFF: NaN, or -1."""

    def __init__(self, size: int) -> None:
        self.bytes = np.full(size, 0xFF, np.uint8)

    def read(self, addresses: Array, size: int) -> Array:
        """uint8 [n, size], from n addresses that must be multiples of `size`."""
        found: Array = self.bytes[self._places(addresses, size)]
        return found

    def write(self, addresses: Array, data: Array) -> None:
        """data: uint8 [n, size]."""
        self.bytes[self._places(addresses, data.shape[1])] = data

    def _places(self, addresses: Array, size: int) -> Array:
        at = addresses.astype(np.int64)
        _check("shared memory", at, at, size, len(self.bytes))
        return at[:, None] + np.arange(size)


class GlobalMemory:
    """Buffers, flat arrays of uint8 that are read and written in place. moved: bytes that buffers
    lie behind a multiple of BASE_ALIGNMENT.
    """

    def __init__(
        self, buffers: Mapping[str, Array], moved: Mapping[str, int] | None = None
    ) -> None:
        self.names, self.buffers = list(buffers), list(buffers.values())
        self.starts = [
            (number << _SPAN) + BASE_ALIGNMENT + (moved or {}).get(name, 0)
            for number, name in enumerate(buffers, 1)
        ]

    def address(self, name: str) -> int:
        return self.starts[self.names.index(name)]

    def read(self, addresses: Array, size: int) -> Array:
        """As SharedMemory.read."""
        data = np.empty((len(addresses), size), np.uint8)
        for number, which, places in self._places(addresses, size):
            data[which] = self.buffers[number][places]
        return data

    def write(self, addresses: Array, data: Array) -> None:
        """As SharedMemory.write."""
        for number, which, places in self._places(addresses, data.shape[1]):
            self.buffers[number][places] = data[which]

    def _places(self, addresses: Array, size: int) -> list[tuple[int, Array, Array]]:
        """(buffer, which of the addresses lie there, places of their bytes)."""
        at = addresses.astype(np.int64)
        owners = (at >> _SPAN) - 1
        found = []
        for owner in np.unique(owners).tolist():
            which = np.flatnonzero(owners == owner)
            if not 0 <= owner < len(self.buffers):
                raise PtxError(f"address {int(at[which[0]]):#x} is in no buffer")
            offsets = at[which] - self.starts[owner]
            _check(f"'{self.names[owner]}'", at[which], offsets, size, len(self.buffers[owner]))
            found.append((owner, which, offsets[:, None] + np.arange(size)))
        return found


def _check(name: str, addresses: Array, offsets: Array, size: int, length: int) -> None:
    for wrong, what in (
        (addresses % size != 0, f"is no multiple of {size}"),
        ((offsets < 0) | (offsets + size > length), f"is not within its {length} bytes"),
    ):
        if wrong.any():
            first = np.flatnonzero(wrong)[0]
            raise PtxError(
                f"{size} bytes at address {int(addresses[first]):#x}, offset {int(offsets[first])} "
                f"of {name}: that {what} ({int(wrong.sum())} of {len(wrong)} threads)"
            )
