"""The rows of a graph's delta in hunks, what repeats itself from layer to layer shown once."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

__all__ = ["Hunk", "Row", "folded"]

Row = tuple[str, str]  # sign and text
_CONTEXT = 1  # unchanged nodes that are shown around a change


@dataclass(frozen=True)
class Hunk:
    """Changes in a row. rows: (sign, text), where "-" was removed, "+" added, "<" changed to the
    next ">", and " " stands beside them unchanged. times: so often, but for names' numbers."""

    rows: tuple[Row, ...]
    times: int = 1


def folded(rows: Sequence[Row]) -> tuple[Hunk, ...]:
    """The hunks, those of inputs and weights first; of those that are equal but for the numbers in
    names, the first one, counted."""
    computed = [row for row in rows if not _stored(row)]
    found: dict[tuple[Row, ...], tuple[tuple[Row, ...], int]] = {}
    for first, last in _runs(computed):
        shown = tuple(computed[max(0, first - _CONTEXT) : last + _CONTEXT])
        key = _key(computed[first:last])
        known = found.get(key, (shown, 0))
        found[key] = (known[0], known[1] + 1)
    stored = _stored_hunks([row for row in rows if _stored(row) and row[0] != " "])
    return (*stored, *(Hunk(shown, times) for shown, times in found.values()))


def _stored(row: Row) -> bool:
    return row[1].endswith((" = weight", " = input"))


def _stored_hunks(rows: Sequence[Row]) -> Iterator[Hunk]:
    """Inputs and weights that changed as often together: of a model with layers, two hunks."""
    units: dict[tuple[Row, ...], tuple[list[Row], int]] = {}
    pending: list[Row] = []
    for row in rows:
        pending.append(row)
        if row[0] != "<":
            known = units.get(_key(pending), (pending, 0))
            units[_key(pending)] = (known[0], known[1] + 1)
            pending = []
    by_times: dict[int, list[Row]] = {}
    for unit, times in units.values():
        by_times.setdefault(times, []).extend(unit)
    for times, together in by_times.items():
        yield Hunk(tuple(together), times)


def _key(rows: Sequence[Row]) -> tuple[Row, ...]:
    return tuple((sign, _without_numbers(text)) for sign, text in rows)


def _runs(rows: Sequence[Row]) -> Iterator[tuple[int, int]]:
    """Ranges of neighbouring changes, gaps of unchanged rows up to twice the context included."""
    first = last = -1
    for number, (sign, _) in enumerate(rows):
        if sign == " ":
            continue
        if first >= 0 and number - last > 2 * _CONTEXT:
            yield first, last
            first = number
        first = number if first < 0 else first
        last = number + 1
    if first >= 0:
        yield first, last


def _without_numbers(text: str) -> str:
    return re.sub(r"%[\w.]+", lambda match: re.sub(r"\d+", "#", match[0]), text)
