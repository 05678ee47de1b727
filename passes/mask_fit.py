"""Which mask of the algebra, and which slopes, a bias over queries and keys looks like."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from graphwright.ir import Mask

__all__ = ["fit_mask", "fit_slopes"]


def fit_mask(bias: torch.Tensor, rows: torch.Tensor, constants: Sequence[int]) -> Mask | None:
    """The mask of the algebra that shows exactly the same keys in these rows, if there is one."""
    visible = ~bias.isinf()
    if not torch.equal(visible, visible[:1].expand_as(visible)):
        return None
    seen = visible[0]
    keys = torch.arange(seen.shape[1])
    for candidate in _candidates(seen, rows, constants):
        if torch.equal(candidate.visible(rows[:, None], keys[None, :]), seen):
            return candidate
    return None


def _candidates(seen: torch.Tensor, rows: torch.Tensor, constants: Sequence[int]) -> Iterator[Mask]:
    """Masks suggested by the rows: spans of the last rows, borders where a chunk begins."""
    yield Mask()
    spans: set[int] = set()
    starts: set[int] = set(constants)
    prefixes: set[int] = set()
    for row, query in zip(seen, rows.tolist(), strict=True):
        hidden = (~row[: query + 1]).nonzero()[:, 0]
        if len(hidden):
            spans.add(query - int(hidden[-1]))
            starts.add(int(hidden[-1]) + 1)
            prefixes.add(int(hidden[0]))
    windows = [span for span in sorted(spans)[-2:] if span > 0]  # 0: its own key is hidden
    chunks = sorted(start for start in starts if start > 0)
    for window in windows:
        yield Mask(window=window)
        for first in sorted(prefixes - {0})[:4]:
            yield Mask(window=window, first=first)
    for chunk in chunks:
        yield Mask(chunk=chunk)
        for window in windows:
            yield Mask(window=window, chunk=chunk)


def fit_slopes(bias: torch.Tensor, rows: torch.Tensor, mask: Mask) -> torch.Tensor | None:
    """Slope of each head over key - query, float64 [heads]; None when nothing is added."""
    visible = ~bias.isinf()
    row = len(rows) - 1
    keys = visible[0, row].nonzero()[:, 0]
    first, last = int(keys[0]), int(keys[-1])
    if first == last:
        return None
    slopes = (bias[:, row, last] - bias[:, row, first]) / (last - first)
    return slopes if bool(slopes.any()) else None
