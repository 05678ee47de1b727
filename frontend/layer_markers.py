"""Ops that mark layers while a model is traced; none is left in a captured program.

`enter` and `leave` delimit the layer that is traced in full: what it gets and what it returns.
`skipped` stands for a result of a layer that is not traced, because it is a copy of the former.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

__all__ = ["ENTER", "LEAVE", "SKIPPED", "is_marker"]

_NAME = "graphwright_layers"
_LIBRARY = torch.library.Library(_NAME, "DEF")
_LIBRARY.define("enter(Tensor x, int layer, int index) -> Tensor")
_LIBRARY.define("leave(Tensor x, int layer, int index) -> Tensor")
_LIBRARY.define(
    "skipped(Tensor[] inputs, SymInt[] size, ScalarType dtype, int layer, int index) -> Tensor"
)


def _same(x: torch.Tensor, layer: int, index: int) -> torch.Tensor:
    return x.new_empty_strided(x.shape, x.stride())


def _skipped(
    inputs: Sequence[torch.Tensor], size: Sequence[int], dtype: torch.dtype, layer: int, index: int
) -> torch.Tensor:
    return inputs[0].new_empty(size, dtype=dtype)


_LIBRARY.impl("enter", _same, "Meta")
_LIBRARY.impl("leave", _same, "Meta")
_LIBRARY.impl("skipped", _skipped, "Meta")

ENTER = torch.ops.graphwright_layers.enter.default
LEAVE = torch.ops.graphwright_layers.leave.default
SKIPPED = torch.ops.graphwright_layers.skipped.default


def is_marker(target: object) -> bool:
    """Is `target` one of these ops?"""
    return target in (ENTER, LEAVE, SKIPPED)
