"""Torch on one thread while it only has little to do between native parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

__all__ = ["quiet_torch"]

_LITTLE = 1 << 17  # elements of the largest argument, as of the keys of a layer


def quiet_torch(run: Callable[..., Any], weights: Sequence[int]) -> Callable[..., Any]:
    """`run`, a function of one list of arguments, with torch on one thread where these are small.

    After each operator on several threads OpenMP's wait for the next one for milliseconds, without
    sleep, on the CPUs that the threads of the native parts need: a step of a small model took 1.6
    times as long. weights: places among the arguments that are not looked at.
    """
    skipped = frozenset(weights)
    places: list[int] | None = None

    def call(arguments: list[Any]) -> Any:
        nonlocal places
        if places is None:
            places = [i for i in range(len(arguments)) if i not in skipped]
        threads = torch.get_num_threads()
        if threads == 1 or any(_is_large(arguments[place]) for place in places):
            return run(arguments)
        torch.set_num_threads(1)
        try:
            return run(arguments)
        finally:
            torch.set_num_threads(threads)

    call._boxed_call = True  # type: ignore[attr-defined]
    return call


def _is_large(argument: Any) -> bool:
    return isinstance(argument, torch.Tensor) and argument.numel() > _LITTLE
