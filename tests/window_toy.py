"""The toy model with attention that sees its first tokens and a window only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from late_toy import LateToy
from numpy.typing import NDArray
from toy_model import PLAN, ToyLibrary, toy_logits, write_toy

from graphwright.runtime.engine import Engine
from graphwright.runtime.plan import Reach

__all__ = ["seen", "window_engine", "window_greedy"]


def seen(reach: Reach, position: int) -> NDArray[np.int64]:
    """What a token at `position` reads."""
    past = np.arange(position + 1)
    return past[(past < reach.first) | (position - past < reach.span)]


def window_greedy(reach: Reach, prompt: Sequence[int], count: int) -> list[int]:
    """The `count` tokens that greedy decoding says after `prompt`."""
    tokens = list(prompt)
    for _ in range(count):
        read = [tokens[position] for position in seen(reach, len(tokens) - 1)]
        tokens.append(int(toy_logits(read).argmax()))
    return tokens[len(prompt) :]


def window_engine(folder: Path, reach: Reach, *, late: bool = False, **options: Any) -> Engine:
    """An engine that knows of the reach. late: its steps overlap."""
    kind: type[ToyLibrary] = LateToy if late else ToyLibrary

    class WindowToy(kind):  # type: ignore[valid-type, misc]
        def visible(self, position: int) -> NDArray[np.int64]:
            return seen(reach, position)

    path = write_toy(folder / "window.gw", kv={**PLAN["kv"], "reach": asdict(reach)})
    return Engine(path, library=WindowToy(), **options)
