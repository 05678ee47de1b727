"""Which modules carry the states that a model decodes with."""

from __future__ import annotations

import torch
from torch import nn

from graphwright.frontend.recurrent.decoding_run import DecodingRun
from graphwright.frontend.recurrent.held_tensors import Path
from graphwright.frontend.recurrent.stepping import SteppedModule
from graphwright.ir.errors import FrontendError

__all__ = ["find_stepped"]


def find_stepped(model: nn.Module, run: DecodingRun) -> list[SteppedModule]:
    """The modules that carry the states of `run`: for each state, the innermost one that holds all
    code that reads it. Raises FrontendError where that is no unit that decodes by itself."""
    homes: dict[Path, str] = {}
    for path, readers in run.readers.items():
        holders = [path[1]] if path[0] == "" else []
        homes[path] = _common([*readers, *holders], run)
    every = set(homes.values())
    units = {home for home in every if not any(_inside(home, o) and home != o for o in every)}
    found = []
    for unit in sorted(units):
        states = {path: run.states[path] for path, home in homes.items() if _inside(home, unit)}
        mixed = next((name for name in sorted(run.growing) if _inside(name, unit)), None)
        if mixed is not None:
            raise FrontendError(
                f"'{unit}' carries states, but '{mixed}' in it keeps something that grows."
            )
        if len(run.prompt[unit]) != 1 or len(run.token[unit]) != 1:
            raise FrontendError(f"'{unit}' carries states and is called several times.")
        other = next((t.dtype for t in states.values() if t.dtype is not torch.float32), None)
        if other is not None:
            raise FrontendError(f"'{unit}' carries a state of {other}, not of float32.")
        module = model.get_submodule(unit)
        calls = run.prompt[unit][0], run.token[unit][0]
        initial = {path: run.initial[path] for path in states}
        kept = run.caches, run.attributes
        found.append(SteppedModule(unit, module, *calls, *kept, states, initial))
    return found


def _common(names: list[str], run: DecodingRun) -> str:
    """The innermost module that is called and holds all of `names`."""
    parts = [name.split(".") if name else [] for name in names]
    length = 0
    while all(len(each) > length and each[length] == parts[0][length] for each in parts):
        length += 1
    while length and ".".join(parts[0][:length]) not in run.prompt:
        length -= 1
    return ".".join(parts[0][:length])


def _inside(name: str, outer: str) -> bool:
    return not outer or name == outer or name.startswith(f"{outer}.")
