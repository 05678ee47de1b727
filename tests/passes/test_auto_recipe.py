"""`auto` as text, what is fixed beside it, and budgets that make no sense."""

from __future__ import annotations

from typing import Any

import pytest

from graphwright.ir.errors import PassError
from graphwright.ir.float_scheme import FloatScheme
from graphwright.ir.schemes import Scheme
from graphwright.passes.auto_recipe import (
    DEFAULT_CANDIDATES,
    AutoRecipe,
    Budget,
    ChosenRecipe,
    is_auto,
)

W4, W8 = Scheme(4, 32), Scheme(8)


def test_candidates_and_what_is_fixed() -> None:
    plain = AutoRecipe.parse("auto")
    assert str(plain) == ", ".join(DEFAULT_CANDIDATES) and not plain.named and plain.bits == 4
    some = AutoRecipe.parse("auto:w8,bf16,w8,f32,head=f32,_0_=w4g32")
    assert some.candidates == (W8, FloatScheme("bf16"), None) and some.named
    assert some.fixed_for("lm_head", "head") == ("head", None)
    assert some.fixed_for("layers_0_up", "linear") == ("_0_", W4)
    assert some.fixed_for("layers_1_up", "linear") is None
    assert some.bits == 4, "what is fixed counts"
    assert AutoRecipe.parse("auto:head=w8").candidates == plain.candidates
    assert is_auto("auto") and is_auto("auto:w8") and not is_auto("w8:auto=w4g32")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("auto:w5", "'w5' is not a quantization scheme"),
        ("auto:w8,head=w3", "'w3' is not a quantization scheme"),
        ("auto:w8,[=w8", r"'\[' in recipe"),
        ("auto:=w8", "is not PATTERN=SCHEME"),
    ],
)
def test_what_cannot_be_read_is_refused(text: str, message: str) -> None:
    with pytest.raises(PassError, match=message):
        AutoRecipe.parse(text)


def test_what_was_chosen_stands_behind_what_was_said() -> None:
    recipe = ChosenRecipe(None, (("head", W8), ("_0_", None)), {"table": W4, "layers_0_up": W4})
    assert recipe.scheme_for("table", "embedding") == W4
    assert recipe.scheme_for("table", "head") == W8
    assert recipe.scheme_for("layers_0_up", "linear") is None
    assert recipe.scheme_for("norm", "linear") is None
    assert recipe.bits == 4


@pytest.mark.parametrize(
    ("quant", "given", "message"),
    [
        ("auto", {}, "needs one of three: .*; none is given"),
        ("auto:w8", {"bits": 5.0, "max_kl": 0.1}, "several are given"),
        (
            "w8",
            {"max_kl": 0.1},
            "max_kl says what .* quant='w8' leaves no choice: use quant='auto'",
        ),
        ("auto", {"bits": 0.0}, "bits=0 is no budget"),
        ("auto", {"max_kl": -1.0}, "max_kl=-1 is no budget"),
        ("auto", {"max_kl": float("nan")}, "max_kl=nan is no budget"),
        ("auto", {"max_size": 0}, "max_size=0 is no budget"),
    ],
)
def test_budgets_that_do_not_go_with_the_recipe(
    quant: str, given: dict[str, Any], message: str
) -> None:
    with pytest.raises(PassError, match=message):
        Budget(**given).check(quant)


def test_budgets_that_do() -> None:
    Budget().check("w8")
    Budget(max_kl=0.0).check("auto")
    Budget(bits=4.5).check("auto:w4g32,w8")
    assert str(Budget(max_size=1000)) == "at most 1000 bytes of weights"
