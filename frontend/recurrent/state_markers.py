"""Ops that mark states while a model is traced; none is left in a captured program.

`read` is a state before each token, `write` passes a result on and says what the states are after
each token. A handle ties the two together, whatever becomes of the nodes in between.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

__all__ = ["READ", "WRITE"]

_NAME = "graphwright_states"
_LIBRARY = torch.library.Library(_NAME, "DEF")
_LIBRARY.define(
    "read(Tensor rows, int[] sizes, ScalarType dtype, float initial) -> (Tensor, Tensor)"
)
_LIBRARY.define("write(Tensor result, Tensor[] states, Tensor[] handles) -> Tensor")


def _read(
    rows: torch.Tensor, sizes: Sequence[int], dtype: torch.dtype, initial: float
) -> tuple[torch.Tensor, torch.Tensor]:
    count = rows.shape[0]
    return rows.new_empty((count, *sizes), dtype=dtype), rows.new_empty((count,))


def _write(
    result: torch.Tensor, states: Sequence[torch.Tensor], handles: Sequence[torch.Tensor]
) -> torch.Tensor:
    return result.new_empty_strided(result.shape, result.stride())


_LIBRARY.impl("read", _read, "Meta")
_LIBRARY.impl("write", _write, "Meta")

READ = torch.ops.graphwright_states.read.default
"""[T, ...] → the state [T, *sizes] before each token, and its handle. initial: what the state is
before the first one."""
WRITE = torch.ops.graphwright_states.write.default
"""A result, the states after each token, and the handles of what they were → the result."""
