"""While gradients are off anyway, a model that turns them off does nothing.

torch.export writes every switch into the graph, cuts the graph at the switches and joins the parts
again, which takes a tenth of its time; the rotary embeddings of most models are such a part.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch

__all__ = ["without_idle_switches"]


@contextmanager
def without_idle_switches() -> Iterator[None]:
    """While open, `torch.no_grad` switches only where gradients are on."""

    def enter(mode: Any) -> None:
        mode.prev = torch.is_grad_enabled()
        if mode.prev:
            torch.set_grad_enabled(False)

    def leave(mode: Any, *error: Any) -> None:
        if torch.is_grad_enabled() != mode.prev:
            torch.set_grad_enabled(mode.prev)

    with (
        mock.patch.object(torch.no_grad, "__enter__", enter),
        mock.patch.object(torch.no_grad, "__exit__", leave),
    ):
        yield
