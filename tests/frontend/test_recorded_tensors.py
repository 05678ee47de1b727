"""Tensors that stand for weights: ops on them are expressions, nothing is loaded before `load`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from graphwright.frontend.recorded_tensors import (
    RecordedTensor,
    load_buffers,
    loaded,
    recorded_weight,
)
from graphwright.ir import ConstantTensor, Weight


class Sealed(ConstantTensor):
    """A weight that may not be loaded yet."""

    opened = False

    def load(self) -> torch.Tensor:
        assert Sealed.opened
        return super().load()


def sealed(*shape: int) -> tuple[torch.Tensor, RecordedTensor]:
    Sealed.opened = False
    values = torch.arange(float(torch.Size(shape).numel())).reshape(shape)
    return values, RecordedTensor(Sealed(shape, values.dtype, values))


OPS: dict[str, Callable[[torch.Tensor], Any]] = {
    "whole": lambda x: x[...],
    "row": lambda x: x[1],
    "rows": lambda x: x[1:3],
    "cast": lambda x: x.to(device="cpu", dtype=torch.bfloat16),
    "transposed": lambda x: x.transpose(0, 1).contiguous(),
    "stacked": lambda x: torch.stack([x, x], dim=0),
    "joined": lambda x: torch.cat([x[:2], x[2:]], dim=1),
    "cut": lambda x: torch.chunk(x, 2, dim=0)[1],
    "split": lambda x: x.split([1, 3], dim=0)[1],
    "shaped": lambda x: x.reshape(2, 2, 6).permute(1, 0, 2),
    "turned and shaped": lambda x: x.transpose(0, 1).reshape(3, 8),
    "parameter": lambda x: nn.Parameter(x).detach(),
}


@pytest.mark.parametrize("op", OPS)
def test_ops_are_recorded(op: str) -> None:
    values, tensor = sealed(4, 6)
    wanted, got = OPS[op](values), OPS[op](tensor)
    assert isinstance(got, RecordedTensor)
    assert (got.shape, got.dtype) == (wanted.shape, wanted.dtype)
    Sealed.opened = True
    assert torch.equal(loaded(got), wanted)


def test_what_changes_nothing_is_no_expression() -> None:
    _, tensor = sealed(4, 6)
    weight = recorded_weight(tensor)
    assert isinstance(weight, Weight)
    for same in (tensor[...], tensor.to(torch.float32), tensor.detach(), nn.Parameter(tensor)):
        assert recorded_weight(same) is weight
    assert recorded_weight(torch.zeros(2)) is None


def test_nothing_is_written() -> None:
    _, tensor = sealed(4, 6)
    with pytest.raises(NotImplementedError, match="writes into a tensor that is not loaded"):
        tensor.add_(1)


def test_buffers_get_their_values() -> None:
    values, tensor = sealed(3)
    module = nn.Module()
    module.register_buffer("table", tensor)
    module.register_buffer("nothing", None)
    Sealed.opened = True
    load_buffers(module)
    assert type(module.table) is torch.Tensor
    assert torch.equal(module.table, values)
