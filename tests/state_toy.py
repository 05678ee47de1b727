"""The toy model with states of one sequence: recurrent ones in its slot, rolling ones in its first
block, beside the keys and values of a cache. All of them are checked at each token."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from late_toy import LateToy
from numpy.typing import NDArray
from toy_model import BLOCK, ToyLibrary, toy_logits, write_toy

from graphwright.runtime.draws import Draw
from graphwright.runtime.engine import Engine
from graphwright.runtime.library import StepBuffers

__all__ = ["KINDS", "said_after", "state_engine"]

SLOT, ROLLING, CACHE = 192, 64, BLOCK * 16  # bytes
ROLLED = 3  # tokens
WINDOW = 9  # positions, of the kind `window`
# By name: what a model keeps.
KINDS: dict[str, frozenset[str]] = {
    "recurrent": frozenset({"slot"}),
    "short convolutions": frozenset({"rolling"}),
    "both": frozenset({"slot", "rolling"}),
    "convolutions and attention": frozenset({"rolling", "cache"}),
    "hybrid": frozenset({"slot", "rolling", "cache"}),
    "window": frozenset({"slot", "rolling", "cache", "window"}),
    "convolutions and window": frozenset({"rolling", "cache", "window"}),
}


class StateToy(ToyLibrary):
    """A StepLibrary. Its tokens depend on all that its sequence has said, if there is a slot or a
    cache of everything, and on the last tokens otherwise."""

    keeps: frozenset[str]

    def caches(self, buffers: StepBuffers) -> list[NDArray[np.int64]]:
        return []  # of other sizes

    def take(
        self, kv: NDArray[np.uint8], caches: Sequence[NDArray[np.int64]],
        tables: Sequence[NDArray[np.int32]], token: int, position: int,
    ) -> list[int]:  # fmt: skip
        (table,) = tables
        blocks = [kv.ctypes.data + block * block_bytes(self.keeps) for block in table.tolist()]
        slot = kv.ctypes.data - (int(table[0]) + 1) * SLOT
        found: list[list[int]] = []
        if "rolling" in self.keeps:
            found.append(_roll(_view(blocks[0], ROLLED), token, position))
        if "cache" in self.keeps:
            place = ROLLING if "rolling" in self.keeps else 0
            parts = [_view(block + place, CACHE // 8).reshape(-1, 2) for block in blocks]
            (visible,) = self.visible(position)
            found.append(_append(parts, token, position, visible.tolist()))
        if "slot" in self.keeps:
            found.append(_advance(_view(slot, SLOT // 2, ctypes.c_int16), token, position))
        most = max(found, key=len)
        assert all(each == most[len(most) - len(each) :] for each in found)
        return most

    def visible(self, position: int) -> list[NDArray[np.int64]]:
        past = np.arange(position + 1)
        return [past[position - past < WINDOW] if "window" in self.keeps else past]


class LateStates(LateToy, StateToy):
    """Its steps wait in a stream, and so do copies."""

    def start(self, entry: str, buffers: StepBuffers, draws: Sequence[Draw], logits: bool) -> int:
        self._caches = buffers.kv.ctypes.data
        return super().start(entry, buffers, draws, logits)

    def copy_caches(self, target: int, source: int, size: int) -> None:
        self.put(partial(ctypes.memmove, self._caches + target, self._caches + source, size))


def said_after(kind: str, prompt: list[int], count: int) -> list[int]:
    """The `count` tokens that greedy decoding says after `prompt`."""
    keeps, tokens = KINDS[kind], list(prompt)
    for _ in range(count):
        seen = tokens
        if "slot" not in keeps and "window" in keeps:
            seen = tokens[-WINDOW:]
        elif not keeps & {"slot", "cache"}:
            seen = tokens[-ROLLED - 1 :]
        tokens.append(int(toy_logits(seen).argmax()))
    return tokens[len(prompt) :]


def block_bytes(keeps: frozenset[str]) -> int:
    """Of all that lies in a block."""
    return ROLLING * ("rolling" in keeps) + CACHE * ("cache" in keeps)


def state_engine(folder: Path, kind: str, *, late: bool = False, **options: Any) -> Engine:
    """An engine that keeps what it has computed of prompts that begin alike."""
    keeps = KINDS[kind]
    kv = {
        "block_size": BLOCK,
        "block_bytes": block_bytes(keeps),
        "states": [{}] if "cache" in keeps else [],
        "rolling": [{}] if "rolling" in keeps else [],
        **({"recurrent": [{}], "slot_bytes": SLOT} if "slot" in keeps else {}),
        **({"reach": {"first": BLOCK, "span": WINDOW}} if "window" in keeps else {}),
    }
    path = write_toy(folder / "states.gw", kv=kv)
    library = LateStates() if late else StateToy()
    library.keeps = keeps
    return Engine(path, library=library, **{"prefix_cache": True, **options})


def _roll(state: NDArray[np.int64], token: int, position: int) -> list[int]:
    if position == 0:
        state[:] = -1
    before = [each for each in state.tolist() if each >= 0]
    assert len(before) == min(ROLLED, position)
    state[:] = [*state[1:], token]
    return [*before, token]


def _append(
    caches: list[NDArray[np.int64]], token: int, position: int, visible: list[int]
) -> list[int]:
    caches[position // BLOCK][position % BLOCK] = token, position
    found = []
    for each in visible:
        key, number = caches[each // BLOCK][each % BLOCK].tolist()
        assert number == each
        found.append(key)
    return found


def _advance(state: NDArray[np.int16], token: int, position: int) -> list[int]:
    if position == 0:
        state[:] = 0
    assert (state[position:] == 0).all() and (state[:position] > 0).all()
    state[position] = token + 1
    said: list[int] = (state[: position + 1] - 1).tolist()
    return said


def _view(address: int, count: int, kind: Any = ctypes.c_int64) -> NDArray[Any]:
    memory = (kind * count).from_address(address)
    return np.frombuffer(memoryview(memory), kind)
