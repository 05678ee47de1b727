"""Placing values in one arena: those that are never alive together may share memory."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from graphwright.ir.memory import Buffer, align

__all__ = ["Lifetime", "place"]


@dataclass(frozen=True)
class Lifetime:
    """A value of `bytes` that is needed from step `first` to step `last`."""

    name: str
    bytes: int
    first: int
    last: int


def place(lifetimes: Iterable[Lifetime]) -> tuple[list[Buffer], int]:
    """(a place for every value, in the order of their first steps; the size of the arena).

    The largest value is placed first, each into the smallest gap that fits among those it is alive
    with. Source: Pisarchyk and Lee, Efficient Memory Management for Deep Neural Net Inference,
    2020.
    """
    placed: list[Buffer] = []
    for value in sorted(lifetimes, key=lambda value: (-value.bytes, value.first, value.name)):
        rivals = [b for b in placed if b.first <= value.last and value.first <= b.last]
        offset = _best_fit(
            value.bytes, sorted((b.offset, b.offset + align(b.bytes)) for b in rivals)
        )
        placed.append(Buffer(value.name, offset, value.bytes, value.first, value.last))
    placed.sort(key=lambda buffer: (buffer.first, buffer.name))
    return placed, max((align(b.offset + b.bytes) for b in placed), default=0)


def _best_fit(size: int, taken: list[tuple[int, int]]) -> int:
    """The start of the smallest gap of `size` between the sorted ranges `taken`, or their end."""
    best: tuple[int, int] | None = None
    end = 0
    for first, last in taken:
        gap = first - end
        if gap >= align(size) and (best is None or gap < best[0]):
            best = (gap, end)
        end = max(end, last)
    return best[1] if best else end
