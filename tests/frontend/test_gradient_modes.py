"""Switches of the gradient mode that change nothing are not made, and the others are."""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from graphwright.frontend.gradient_modes import without_idle_switches


class Switches(TorchFunctionMode):
    """What torch.export would write into the graph."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[bool] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch._C._set_grad_enabled:
            self.seen.append(args[0])
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def off() -> bool:
    return torch.is_grad_enabled()


def test_only_switches_that_change_something_are_made() -> None:
    with torch.no_grad(), without_idle_switches():
        with Switches() as idle:
            assert not off()
            with torch.no_grad():
                assert not off()
        with Switches() as needed, torch.enable_grad():
            assert not off()
            with torch.no_grad():
                assert not torch.is_grad_enabled()
            assert torch.is_grad_enabled()
        assert not torch.is_grad_enabled()
    assert idle.seen == []
    assert needed.seen == [True, False, True, False, True, False]
    assert torch.is_grad_enabled()
