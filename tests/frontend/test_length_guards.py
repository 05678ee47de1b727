"""What a trace took for granted of its example's length is found, and refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from graphwright.frontend.capture import capture_module
from graphwright.ir.errors import FrontendError


class Model(nn.Module):
    """An embedding, `function` of it, a head."""

    def __init__(self, function: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.table, self.head = nn.Embedding(8, 16), nn.Linear(16, 8)
        self.places = nn.Parameter(torch.zeros(200, 16))

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits [1, T, 8]."""
        return self.head(self.function(self, self.table(tokens)))  # type: ignore[no-any-return]


def loop(m: Model, h: Tensor) -> Tensor:
    for _ in range(h.shape[1] // 4):
        h = h * 1.01
    return h


def long_enough(m: Model, h: Tensor) -> Tensor:
    return h * 2 if h.shape[1] / 7 > 1.5 else h


REFUSED: dict[str, tuple[Callable[[Any, Tensor], Tensor], str]] = {
    "a loop": (loop, "another path for 2 tokens at"),
    "parity": (lambda m, h: h * 2 if h.shape[1] % 2 == 0 else h, "another path for 3 tokens at"),
    "a limit": (long_enough, "another path for 2 tokens at"),
    "a whole number": (lambda m, h: h * int(h.shape[1] / 3), "another path for 2 tokens at"),
    "an argument": (lambda m, h: F.layer_norm(h, (16,), eps=1 / h.shape[1]), "another path for 2"),
    "a scale": (
        lambda m, h: F.scaled_dot_product_attention(h, h, h, is_causal=True, scale=1 / h.shape[1]),
        "another path for 2 tokens",
    ),
    "a logarithm": (lambda m, h: h * math.log(h.shape[1]), "became a constant"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_holds_for_the_example_only_is_refused(name: str) -> None:
    function, words = REFUSED[name]
    with pytest.raises(FrontendError, match="cannot be traced for a variable number") as caught:
        capture_module(Model(function))
    first = str(caught.value).splitlines()[1]
    assert "plain export" in first and words in first, str(caught.value)


def test_the_place_is_the_line_of_the_model() -> None:
    with pytest.raises(FrontendError) as caught:
        capture_module(Model(long_enough))
    assert "test_length_guards.py" in str(caught.value) and "/ 7 > 1.5" in str(caught.value)


def test_a_length_that_only_bounds_is_the_longest_context() -> None:
    """A table's rows, also from its end: [200 - T:] of 200 rows is right up to 200 tokens."""
    program = capture_module(Model(lambda m, h: h + m.places[: h.shape[1]]))
    assert program.info.max_context == 200
    program = capture_module(Model(lambda m, h: h + m.places[200 - h.shape[1] :]))
    assert program.info.max_context in (199, 200)


def test_a_float_of_the_length_that_stays_one_is_no_constant() -> None:
    program = capture_module(Model(lambda m, h: F.leaky_relu(h, 1 / h.shape[1])))
    relu = next(n for n in program.graph.nodes if n.target is torch.ops.aten.leaky_relu.default)
    assert isinstance(relu.args[1], torch.fx.Node)


def test_a_branch_for_one_token_is_met_by_running_it() -> None:
    """A trace with a dynamic length takes it for granted that there are two tokens or more."""
    with pytest.raises(FrontendError, match=r"traced for 2 tokens or more.*wrong for 1"):
        capture_module(Model(lambda m, h: h * 2 if h.shape[1] > 1 else h))
