"""The forward on tensors without values, run as it is while it is exported."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from graphwright.frontend.stateless import StatelessForward

__all__ = ["inputs_of_shape", "run_on_shapes"]


def inputs_of_shape(
    forward: StatelessForward, tokens: torch.Tensor, mode: FakeTensorMode
) -> list[torch.Tensor]:
    """What `forward` takes for `tokens` [T], without values."""
    positions = (torch.arange(tokens.shape[0]),) if forward.takes_positions else ()
    return [mode.from_tensor(x) for x in (tokens, *positions)]


def run_on_shapes(
    forward: StatelessForward, inputs: Sequence[torch.Tensor], mode: FakeTensorMode, *watchers: Any
) -> Any:
    """Its result for `inputs` of `mode`. watchers: contexts to run in, the last one innermost.

    Raises whatever the model's code raises where it needs values.
    """
    with torch.no_grad(), _as_in_export(), mode, ExitStack() as stack:
        for watcher in watchers:
            stack.enter_context(watcher)
        return forward(*inputs)


@contextmanager
def _as_in_export() -> Iterator[None]:
    """Models ask whether they are being compiled, and do without checks of values then."""
    with (
        mock.patch.object(torch.compiler, "_is_compiling_flag", new=True),
        mock.patch.object(torch.compiler, "_is_exporting_flag", new=True),
    ):
        yield
