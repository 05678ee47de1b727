"""Modules that cannot be captured: the error says what was tried, what is wrong and where."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from graphwright.frontend import capture_module
from graphwright.ir import FrontendError
from graphwright.ir.interpreter import run_program


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table: Any = nn.Embedding(64, 8)
        self.seen: torch.Tensor
        self.register_buffer("seen", torch.zeros(1))


class LoopsOverTokens(Base):
    def forward(self, x: torch.Tensor) -> Any:
        h = self.table(x)
        for place in range(x.shape[1]):  # the loop
            h = h + self.table.weight[place]
        return h


class FixedLength(Base):
    def forward(self, x: torch.Tensor) -> Any:
        return self.table(x) + torch.zeros(1, 12, 8)


class BranchesOnTokens(Base):
    def forward(self, x: torch.Tensor) -> Any:
        return self.table(x) * 2 if int(x.max().item()) > 3 else self.table(x)


class TakesFours(Base):
    def forward(self, x: torch.Tensor) -> Any:
        h = self.table(x)
        h = h.view(1, x.shape[1] // 4, 4, 8).flip(2)
        return h.reshape(1, x.shape[1], 8)


class BranchesOnLength(Base):
    def forward(self, x: torch.Tensor) -> Any:
        return self.table(x) * 2 if x.shape[1] > 8 else self.table(x)


class LastTokenOnly(Base):
    def forward(self, x: torch.Tensor) -> Any:
        return self.table(x)[:, -1:]


class NoSequence(Base):
    def forward(self, x: torch.Tensor) -> Any:
        return self.table(x).sum(1)


class NoLogits(Base):
    def forward(self, x: torch.Tensor) -> Any:
        return {"loss": self.table(x)}


class NoArguments(Base):
    def forward(self) -> Any:
        return self.seen


class HasState(Base):
    def forward(self, x: torch.Tensor) -> Any:
        self.seen += 1
        return self.table(x) + self.seen


CASES: dict[type[Base], list[str]] = {
    LoopsOverTokens: [
        "LoopsOverTokens cannot be traced for a variable number of tokens",
        "\n  plain export: the number of tokens became a constant at ",
        "test_capture_errors.py:",
        "# the loop",
    ],
    FixedLength: ["became a constant at ", "torch.zeros(1, 12, 8)"],
    BranchesOnTokens: [
        "branches on a value that is computed from the tokens at ",
        "x.max().item()",
    ],
    TakesFours: ["takes another path for 2 tokens", "(it was traced for", "tokens//4"],
    BranchesOnLength: ["could only be traced for 16 tokens or more", "wrong for 1"],
    LastTokenOnly: ["logits of shape [1, 8] for 13 token(s); expected [13, 8]"],
    NoSequence: ["must return logits of shape [1, tokens, vocabulary], not [1, 8]"],
    NoLogits: ["returned dict, which holds no logits"],
    NoArguments: ["takes no argument that could be the tokens"],
    HasState: ["HasState.forward changes 'seen' while it runs"],
}


@pytest.mark.parametrize("module", CASES)
def test_the_error_says_what_and_where(module: type[Base]) -> None:
    model = module()
    before = [id(tensor) for tensor in model.state_dict(keep_vars=True).values()]
    with pytest.raises(FrontendError) as caught:
        capture_module(model)
    for part in CASES[module]:
        assert part in str(caught.value)
    assert [id(tensor) for tensor in model.state_dict(keep_vars=True).values()] == before


class TwoEqualPaths(Base):
    def forward(self, x: torch.Tensor) -> Any:
        h = self.table(x)
        return h * 2 if x.shape[1] <= 4 else torch.cat([h[:, :4], h[:, 4:]], 1) * 2


def test_a_trace_for_long_sequences_is_taken_when_it_is_right_for_short_ones() -> None:
    model = TwoEqualPaths()
    program = capture_module(model)
    tokens = torch.tensor([3, 1])
    got = run_program(program, {"tokens": tokens, "positions": torch.arange(2)})
    assert torch.equal(got, model(tokens[None])[0])


@pytest.mark.parametrize("indexed", [False, True])
def test_an_id_that_can_be_sampled_has_a_row_in_the_table_of_tokens(indexed: bool) -> None:
    class Narrow(nn.Module):
        def __init__(self, rows: int) -> None:
            super().__init__()
            self.table, self.head = nn.Embedding(rows, 8), nn.Linear(8, 16)

        def forward(self, x: torch.Tensor) -> Any:
            return self.head(self.table.weight[x] if indexed else self.table(x))

    with pytest.raises(FrontendError, match=r"table of 12 rows.* for 16 tokens: ids from 12 on"):
        capture_module(Narrow(12))
    assert capture_module(Narrow(17)).info.vocab_size == 16
