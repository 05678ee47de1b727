"""The toy model with layers that see all tokens or their first ones and a window only, and a pool
of blocks for each reach."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from late_toy import LateToy
from numpy.typing import NDArray
from toy_model import BLOCK, PLAN, ToyLibrary, toy_logits, write_toy

from graphwright.runtime.engine import Engine
from graphwright.runtime.plan import Reach

__all__ = ["pools_plan", "seen", "window_engine", "window_greedy"]


def seen(reach: Reach | None, position: int) -> NDArray[np.int64]:
    """What a token at `position` reads."""
    past = np.arange(position + 1)
    if reach is None:
        return past
    return past[(past < reach.first) | (position - past < reach.span)]


def window_greedy(reaches: Sequence[Reach | None], prompt: Sequence[int], count: int) -> list[int]:
    """The `count` tokens that greedy decoding says after `prompt`."""
    tokens = list(prompt)
    for _ in range(count):
        places = np.concatenate([seen(reach, len(tokens) - 1) for reach in reaches])
        tokens.append(int(toy_logits([tokens[position] for position in places]).argmax()))
    return tokens[len(prompt) :]


def pools_plan(reaches: Sequence[Reach | None]) -> dict[str, Any]:
    """What plan.json says of caches with these reaches, each in a pool of its own."""
    pools = [
        {"block_bytes": BLOCK * 16, **({} if reach is None else {"reach": asdict(reach)})}
        for reach in reaches
    ]
    if len(pools) == 1:
        return {**PLAN["kv"], **pools[0]}
    return {**PLAN["kv"], "block_bytes": len(pools) * BLOCK * 16, "pools": pools}


def window_engine(
    folder: Path, *reaches: Reach | None, late: bool = False, **options: Any
) -> Engine:
    """An engine that knows of the reaches. late: its steps overlap."""
    kind: type[ToyLibrary] = LateToy if late else ToyLibrary

    class WindowToy(kind):  # type: ignore[valid-type, misc]
        def visible(self, position: int) -> list[NDArray[np.int64]]:
            return [seen(reach, position) for reach in reaches]

    path = write_toy(folder / "window.gw", kv=pools_plan(reaches))
    return Engine(path, library=WindowToy(), **options)
