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

    @property
    def span(self) -> int | None:
        """How many positions back a later query can still read, or None when there is no bound."""
        if self.first:
            return None
        bounds = [bound for bound in (self.window, self.chunk) if bound is not None]
        return min(bounds) if bounds else None
