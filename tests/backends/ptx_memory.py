"""Memory of which every access is checked: global buffers by name, and shared memory."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np
from ptx_values import Array

__all__ = ["BASE_ALIGNMENT", "GlobalMemory", "LocalMemory", "PtxError", "SharedMemory"]

BASE_ALIGNMENT = 16  # what kernels are told of pointers: addresses are multiples of no more
_SPAN = 40  # bits of an address that say where in a buffer


class PtxError(Exception):
    """What a GPU would not do, or would do wrongly."""


class SharedMemory:
    """`size` bytes at address 0, full of 0xFF: NaN, or -1.

    Between two barriers a byte is one warp's once that writes it, and whoever reads it must not
    find it changed by another. Of accesses, `warps` [n] says whose they are.
    """

    def __init__(self, size: int) -> None:
        self.bytes = np.full(size, 0xFF, np.uint8)
        self.barriers = 0
        self.coming = np.zeros(size, np.bool_)  # copied to by what nobody has waited for
        self.held: list[list[Array]] = [[]]  # what groups of wgmma read, the last one open
        self.written, self.read_at = (np.full(size, -1, np.int32) for _ in range(2))  # barriers
        self.writer, self.reader = (np.full(size, -1, np.int32) for _ in range(2))  # -1: several

    def read(self, addresses: Array, size: int, warps: Array) -> Array:
        """uint8 [n, size], from n addresses that must be multiples of `size`."""
        at, own = self._places(addresses, size), warps[:, None]
        if self.coming[at].any():
            raise PtxError("shared memory is read before a copy to it was waited for")
        if ((self.written[at] == self.barriers) & (self.writer[at] != own)).any():
            raise PtxError("shared memory is read that another warp wrote since the last barrier")
        several = (self.read_at[at] == self.barriers) & (self.reader[at] != own)
        self.read_at[at], self.reader[at] = self.barriers, np.where(several, -1, own)
        self.reader[at[self.reader[at] != own]] = -1
        found: Array = self.bytes[at]
        return found

    def write(self, addresses: Array, data: Array, warps: Array) -> None:
        """data: uint8 [n, size]."""
        at, own = self._places(addresses, data.shape[1]), warps[:, None]
        self._claim(at, own, self.bytes[at] != data)
        self.bytes[at] = data
        if (self.bytes[at] != data).any():
            raise PtxError("two threads write different values to the same shared memory")
        self.written[at], self.writer[at] = self.barriers, own

    def expect(self, addresses: Array, size: int, warps: Array) -> None:
        """A copy to there begins."""
        at = self._places(addresses, size)
        self._claim(at, warps[:, None], np.ones(at.shape, np.bool_))
        self.coming[at] = True

    def arrive(self, addresses: Array, data: Array, warps: Array) -> None:
        """It was waited for."""
        self.coming[self._places(addresses, data.shape[1])] = False
        self.write(addresses, data, warps)

    def hold(self, addresses: Array, size: int) -> None:
        """Nobody may write there until the open group of tensor cores' work was waited for."""
        self.held[-1].append(self._places(addresses, size))

    def let_go(self, left: int) -> None:
        """All groups but the last `left` were waited for."""
        while len(self.held) - 1 > left:
            self.held.pop(0)

    def _claim(self, at: Array, own: Array, changed: Array) -> None:
        if self.coming[at].any():
            raise PtxError("shared memory is written while a copy to it is on its way")
        for places in itertools.chain.from_iterable(self.held):
            if np.isin(at, places).any():
                raise PtxError("shared memory is written that tensor cores may still read")
        for when, who in ((self.written, self.writer), (self.read_at, self.reader)):
            if ((when[at] == self.barriers) & (who[at] != own) & changed).any():
                raise PtxError(
                    "shared memory is written that another warp used since the last barrier"
                )

    def _places(self, addresses: Array, size: int) -> Array:
        at = addresses.astype(np.int64)
        _check("shared memory", at, at, size, len(self.bytes))
        return at[:, None] + np.arange(size)


class LocalMemory:
    """`size` bytes of each thread's own, from address 0, full of 0xFF."""

    def __init__(self, threads: int, size: int) -> None:
        self.bytes = np.full((threads, size), 0xFF, np.uint8)

    def read(self, addresses: Array, size: int, lanes: Array) -> Array:
        """uint8 [n, size]: thread lanes[i] reads at addresses[i]."""
        found: Array = self.bytes[lanes[:, None], self._places(addresses, size)]
        return found

    def write(self, addresses: Array, data: Array, lanes: Array) -> None:
        """data: uint8 [n, size]."""
        self.bytes[lanes[:, None], self._places(addresses, data.shape[1])] = data

    def _places(self, addresses: Array, size: int) -> Array:
        at = addresses.astype(np.int64)
        _check("local memory", at, at, size, self.bytes.shape[1])
        return at[:, None] + np.arange(size)


class GlobalMemory:
    """Buffers, flat arrays of uint8 that are read and written in place. moved: bytes that buffers
    lie behind a multiple of BASE_ALIGNMENT. constants: of code that begins before the launches in
    front of it have ended, the buffers that a program may read before it waits for them.
    """

    def __init__(
        self, buffers: Mapping[str, Array], moved: Mapping[str, int] | None = None,
        constants: frozenset[str] | None = None,
    ) -> None:  # fmt: skip
        self.constants, self.waited = constants, True
        self.names, self.buffers = list(buffers), list(buffers.values())
        self.starts = [
            (number << _SPAN) + BASE_ALIGNMENT + (moved or {}).get(name, 0)
            for number, name in enumerate(buffers, 1)
        ]

    def begin(self) -> None:
        """A program begins."""
        self.waited = self.constants is None

    def end(self) -> None:
        """It has ended."""
        if not self.waited:
            raise PtxError("a program has ended that did not wait for the launches in front of it")

    def address(self, name: str) -> int:
        return self.starts[self.names.index(name)]

    def read(self, addresses: Array, size: int) -> Array:
        """uint8 [n, size], from n addresses that must be multiples of `size`."""
        data = np.empty((len(addresses), size), np.uint8)
        for number, which, places in self._places(addresses, size):
            if not self.waited and self.names[number] not in (self.constants or ()):
                raise PtxError(f"'{self.names[number]}' is read before the program has waited")
            data[which] = self.buffers[number][places]
        return data

    def write(self, addresses: Array, data: Array) -> None:
        """data: uint8 [n, size]."""
        if not self.waited:
            raise PtxError("something is written before the program has waited")
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
