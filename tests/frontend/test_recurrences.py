"""A recurrence is told from shapes before anything is exported, also where a later line needs
values."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from graphwright.frontend import repeated_layers
from graphwright.frontend.capture import capture_module
from graphwright.frontend.layer_stubs import StubbedLayers
from graphwright.frontend.recurrences import refuse_recurrence
from graphwright.frontend.stateless import StatelessForward
from graphwright.ir.errors import FrontendError

SIZE = 32


class States(nn.Module):
    """A state from block to block, each of them unrolled, and then `after`."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(8, 4), nn.Linear(4, 8)

    def forward(self, tokens: Tensor) -> Any:
        h = self.table(tokens)[0]
        blocks = F.pad(h, (0, 0, 0, (SIZE - h.shape[0] % SIZE) % SIZE)).reshape(-1, SIZE, 4)
        for row in range(1, SIZE):
            blocks[:, row] = blocks[:, row] + blocks[:, row - 1].sigmoid()
        state = torch.eye(4)
        for part in blocks:
            state = state + part.transpose(0, 1) @ part  # the state
        return self.head(self.after(h @ state))[None]

    def after(self, h: Tensor) -> Tensor:
        for place in h[:, 0].nonzero():  # needs values
            h = h + place
        return h


class EndsElsewhere(States):
    """How far it gets says nothing: short texts need values at another line."""

    def after(self, h: Tensor) -> Tensor:
        if h.shape[0] < 100:
            return h[h[:, 0].nonzero()[0]]
        return h[h[:, 1].nonzero()[0]]


def test_a_state_before_a_line_that_needs_values_is_seen_without_an_export(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def export(*args: Any) -> Any:
        raise AssertionError("exported")

    monkeypatch.setattr(repeated_layers, "export_dynamic", export)
    with pytest.raises(FrontendError, match=r"States is recurrent: .*# the state"):
        capture_module(States())


def test_runs_that_end_at_other_lines_are_not_compared() -> None:
    with StubbedLayers([]) as stubs:
        with pytest.raises(FrontendError, match="is recurrent"):
            refuse_recurrence(StatelessForward(States()), stubs, torch.arange(12) % 8, None)
        refuse_recurrence(StatelessForward(EndsElsewhere()), stubs, torch.arange(12) % 8, None)


class Scaled(nn.Module):
    """Five ops in a line of code that several modules share."""

    def forward(self, h: Tensor) -> Tensor:
        return h * torch.rsqrt((h * h).mean(-1, keepdim=True) + 1e-6)


class SharesLines(nn.Module):
    """Layers of six `Scaled` each; with `step`, a module that is called once for each token."""

    def __init__(self, step: nn.Module | None = None) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(8, 4), nn.Linear(4, 8)
        self.blocks = nn.ModuleList(nn.Sequential(*(Scaled() for _ in range(6))) for _ in range(2))
        self.step = step

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.table(tokens)[0]
        for block in self.blocks:
            h = block(h)
        if self.step is not None:
            h = torch.cat([self.step(row) for row in h.split([1] * h.shape[0])])
        result: Tensor = self.head(h)[None]
        return result


@pytest.mark.parametrize("step", [None, Scaled()])
def test_only_a_module_that_runs_a_line_often_is_looked_at(
    step: nn.Module | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(repeated_layers, "refuse_recurrence", lambda *args: asked.append(args))
    monkeypatch.setattr(repeated_layers, "_export", lambda *args: None)
    repeated_layers.export_repeated(StatelessForward(SharesLines(step)), torch.arange(12) % 8)
    assert len(asked) == (step is not None), "30 ops of one line in a layer, 5 or 60 in a module"
