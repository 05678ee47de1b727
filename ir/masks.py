"""The mask algebra: which key positions a query position may attend to.

A mask is written as text in the graph, e.g. ``causal``, ``causal & window(4096)``,
``causal & (window(8) | first(4))``, ``causal & chunk(16)``. Positions count
from 0 within a sequence.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from graphwright.ir.errors import PassError

if TYPE_CHECKING:
    import torch

__all__ = ["Mask"]

_TEXT = re.compile(
    r"causal"
    r"(?: & (?:window\((?P<window>\d+)\)|\(window\((?P<kept>\d+)\) \| first\((?P<first>\d+)\)\)))?"
    r"(?: & chunk\((?P<chunk>\d+)\))?"
)


@dataclass(frozen=True)
class Mask:
    """``causal``, optionally narrowed: query i sees key j <= i, and

    * window: i - j < window, or j < first;
    * chunk: i // chunk == j // chunk.
    """

    window: int | None = None
    first: int = 0
    chunk: int | None = None

    def __str__(self) -> str:
        text = "causal"
        if self.window is not None:
            window = f"window({self.window})"
            text += f" & ({window} | first({self.first}))" if self.first else f" & {window}"
        if self.chunk is not None:
            text += f" & chunk({self.chunk})"
        return text

    @staticmethod
    @functools.cache
    def parse(text: str) -> Mask:
        """The mask that `str` wrote. Raises PassError for anything else."""
        match = _TEXT.fullmatch(text)
        if match is None:
            raise PassError(f"'{text}' is not a mask: expected e.g. 'causal & window(4096)'.")
        number = {name: int(value) for name, value in match.groupdict().items() if value}
        return Mask(
            window=number.get("window", number.get("kept")),
            first=number.get("first", 0),
            chunk=number.get("chunk"),
        )

    def visible(self, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        """Boolean, broadcast over integer positions `query` and `key`: may query attend to key?"""
        allowed = key <= query
        if self.window is not None:
            allowed = allowed & ((query - key < self.window) | (key < self.first))
        if self.chunk is not None:
            allowed = allowed & (query // self.chunk == key // self.chunk)
        return allowed

    def within(self, other: Mask) -> Mask | None:
        """What both this mask and `other` leave visible; None where no mask says that."""
        windows = _both_windows((self.window, self.first), (other.window, other.first))
        chunk = _both_chunks(self.chunk, other.chunk)
        if windows is None or chunk == 0 or (chunk and windows[1]):
            return None
        return Mask(*windows, chunk)

    @property
    def span(self) -> int | None:
        """How many positions back a later query can still read, or None when there is no bound."""
        return None if self.first else self.tail

    @property
    def tail(self) -> int | None:
        """The same, of positions that are not among the first `first`."""
        bounds = [bound for bound in (self.window, self.chunk) if bound is not None]
        return min(bounds) if bounds else None


_Window = tuple[int | None, int]  # window, first


def _both_windows(one: _Window, other: _Window) -> _Window | None:
    """Keys that both windows let in; None where no window does."""
    (narrow, kept), (wide, first) = sorted(
        (one, other), key=lambda each: (each[0] or 1 << 62, each[1])
    )
    if wide is None or kept <= first:  # whatever the narrow one lets in, the wide one does, too
        return narrow, kept
    return (narrow, first) if narrow == wide else None


def _both_chunks(one: int | None, other: int | None) -> int | None:
    """Chunks that lie in chunks of both; 0 where these are no chunks of one size."""
    small, large = sorted((one or 0, other or 0))
    if small == 0 or large % small == 0:
        return small or large or None
    return 0
