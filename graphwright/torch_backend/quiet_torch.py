"""Torch on one thread while it only has little to do between native parts."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch

__all__ = ["QuietTorch"]

_LITTLE = 1 << 17  # elements of the largest argument, as of the keys of a layer


class QuietTorch:
    """The threads of torch during one graph.

    After each operator on several threads OpenMP's wait for the next one for milliseconds, without
    sleep, on the CPUs that the threads of the native parts need: a step of a small model took 1.6
    times as long.
    """

    def __init__(self) -> None:
        self._call = threading.local()  # a call knows nothing of those in other threads

    def hush(self) -> None:
        """Called by a part that works on few rows: from now on one thread, to the graph's end, if
        all that the graph was given is small."""
        if getattr(self._call, "may_be_hushed", False) and torch.get_num_threads() != 1:
            torch.set_num_threads(1)

    def around(self, run: Callable[..., Any], places: Sequence[int]) -> Callable[..., Any]:
        """`run`, a function of one list of arguments, with the threads as before when it is done.

        places: of the arguments that say how much there is to do, which weights do not.
        """

        def call(arguments: list[Any]) -> Any:
            threads = torch.get_num_threads()
            small = not any(
                isinstance(each, torch.Tensor) and each.numel() > _LITTLE
                for each in map(arguments.__getitem__, places)
            )
            self._call.may_be_hushed = small and threads > 1
            try:
                return run(arguments)
            finally:
                if self._call.may_be_hushed and torch.get_num_threads() != threads:
                    torch.set_num_threads(threads)
                self._call.may_be_hushed = False

        call._boxed_call = True  # type: ignore[attr-defined]
        return call
