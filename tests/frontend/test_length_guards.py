"""What a trace took for granted of its example's length is found, and refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import sympy  # type: ignore[import-untyped]
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._sympy.functions import CeilToInt, FloorDiv, IntTrueDiv, Max, Min, Mod
from torch.utils._sympy.interp import sympy_interp
from torch.utils._sympy.reference import PythonReferenceAnalysis

from graphwright.frontend import export_ladder
from graphwright.frontend.capture import capture_module
from graphwright.frontend.length_conditions import holds
from graphwright.frontend.stateless import StatelessForward
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
    "a limit": (long_enough, "another path for fewer than 11 tokens at"),
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


def branch_at(length: int) -> Callable[[Any, Tensor], Tensor]:
    return lambda m, h: h * 2 if h.shape[1] != length else h


DEFERRED = "export with deferred runtime asserts"


@pytest.mark.parametrize("broken", [20, 40])
def test_a_branch_for_one_length_is_seen_by_every_rung(
    broken: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Deferred guards become assertions, which do not say that it was the model that asked."""
    deferred = [rung for rung in export_ladder._LADDER if rung.deferred]
    monkeypatch.setattr(export_ladder, "_LADDER", deferred)
    with pytest.raises(FrontendError) as caught:
        capture_module(Model(branch_at(broken)))
    first = str(caught.value).splitlines()[1]
    assert DEFERRED in first and f"path for {broken} tokens at " in first
    assert "test_length_guards.py" in first and "!= length" in first


def test_a_rung_that_would_meet_the_same_branch_is_left_out() -> None:
    with pytest.raises(FrontendError) as caught:
        capture_module(Model(branch_at(20)))
    assert str(caught.value).splitlines()[1].startswith("  plain export: ")
    assert len(str(caught.value).splitlines()) == 2


def test_an_export_ends_at_the_branch_that_no_such_export_gets_around(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Shorter texts go another way: what comes after the branch is not traced for nothing."""
    reached: list[Any] = []

    def not_for_five(m: Model, h: Tensor) -> Tensor:
        h = branch_at(5)(m, h)
        if isinstance(h.shape[1], torch.SymInt):
            reached.append(h.shape[1])
        return h

    monkeypatch.setattr(export_ladder, "_LADDER", export_ladder._LADDER[:1])
    with pytest.raises(FrontendError, match=r"plain export: .*path for 5 tokens at .*!= length"):
        capture_module(Model(not_for_five))
    assert not reached


def tries(function: Callable[[Any, Tensor], Tensor], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The rungs that did not work, of one climb."""
    lines: list[str] = []
    monkeypatch.setattr(export_ladder._LOG, "info", lambda text, *args: lines.append(args[0]))
    try:
        export_ladder.export_dynamic(StatelessForward(Model(function)), torch.arange(12) % 8)
    except FrontendError:
        lines.append("refused")
    return lines


def test_a_loop_over_the_tokens_is_a_loop_on_every_rung(monkeypatch: pytest.MonkeyPatch) -> None:
    def each(m: Model, h: Tensor) -> Tensor:
        for place in range(h.shape[1]):
            h = h + m.places[place]
        return h

    assert tries(each, monkeypatch) == ["plain export", "refused"]
    # Only short texts loop, in numbers that a trace of longer ones has too: a later rung's trace.
    few = lambda m, h: each(m, h) if h.shape[1] < 13 else h  # noqa: E731
    assert tries(few, monkeypatch) == ["plain export", DEFERRED]
    # The example is as long as a table is by chance, and longer ones are not.
    chance = lambda m, h: h * 2 if h.shape[1] == len(m.places[:12]) else h  # noqa: E731
    assert len(tries(chance, monkeypatch)) > 1


def test_a_trace_for_long_texts_is_compared_at_every_shorter_length() -> None:
    with pytest.raises(
        FrontendError, match=r"traced for 16 tokens or more.*wrong for 5:"
    ) as caught:
        capture_module(Model(branch_at(5)))
    assert "path for 5 tokens at " in str(caught.value).splitlines()[0]  # the true reason first


def test_a_choice_among_so_many_tokens_is_refused_for_the_branch_around_it() -> None:
    def best(m: Model, h: Tensor) -> Tensor:
        if h.shape[1] > 8:  # keep the best
            h = h + h.topk(8, 1).values.mean(1, keepdim=True)
        return h

    with pytest.raises(FrontendError, match="16 tokens or more does not help: ") as caught:
        capture_module(Model(best))
    first = str(caught.value).splitlines()[0]
    assert "path for fewer than 9 tokens at " in first and "# keep the best" in first


def test_what_an_earlier_try_met_ends_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    forward = StatelessForward(Model(REFUSED["parity"][0]))
    tokens = torch.zeros(12, dtype=torch.int64)
    lines = []
    monkeypatch.setattr(export_ladder._LOG, "info", lambda text, *args: lines.append(text % args))
    with pytest.raises(FrontendError) as first:
        export_ladder.export_dynamic(forward, tokens)
    assert len(lines) == 2
    with pytest.raises(FrontendError) as second:
        export_ladder.export_dynamic(forward, tokens, known=str(first.value))
    assert len(lines) == 3 and str(second.value) == str(first.value)


def test_windows_of_tokens_are_refused_at_the_line_that_asks() -> None:
    """A model that packs whole windows of 4 tokens: shorter texts have none."""

    def windows(m: Model, h: Tensor) -> Tensor:
        usable = h[:, : h.shape[1] // 4 * 4]
        if usable.shape[1] > 0:  # at least one
            h = h + usable.reshape(1, -1, 4, 16).mean((1, 2))
        return h

    with pytest.raises(FrontendError) as caught:
        capture_module(Model(windows))
    first = str(caught.value).splitlines()[1]
    assert "path for fewer than 4 tokens at " in first and "# at least one" in first


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


def _conditions(n: Any) -> list[Any]:
    return [
        sympy.Ge(FloorDiv(n + 63, 64), 2),
        sympy.Eq(Mod(n, 8), 4),
        sympy.Ne(FloorDiv(16, n - 7), 3),  # no number for 7 tokens
        sympy.Lt(IntTrueDiv(n, 7), sympy.Float(1.5)),
        sympy.And(sympy.Gt(n, 3), sympy.Le(Max(n, 12), 40)),
        sympy.Ge(Max(n - 5, Min(n, 3)), 2),
        sympy.Eq(CeilToInt(IntTrueDiv(n, 3)), 4),
        sympy.Not(sympy.Eq(2 * n**2 - n, 120)),
    ]


def test_conditions_as_code_say_what_they_say_to_torch() -> None:
    symbol = sympy.Symbol("s0", positive=True, integer=True)
    for condition in _conditions(symbol):
        for length in range(1, 130):
            try:
                want = sympy_interp(PythonReferenceAnalysis, {symbol: length}, condition)
            except ZeroDivisionError:
                want = False
            assert holds(condition, length) == bool(want), (condition, length)
