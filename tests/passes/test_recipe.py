"""Quantization recipes as text."""

from __future__ import annotations

import pytest

from graphwright.ir import PassError
from graphwright.ir.schemes import Scheme
from graphwright.passes.recipe import Recipe


def test_one_scheme_for_all() -> None:
    for text, scheme in (("w8", Scheme(8)), ("w8g32", Scheme(8, 32)), ("f32", None)):
        recipe = Recipe.parse(text)
        assert all(recipe.scheme_for("w", role) == scheme for role in ("linear", "head"))  # type: ignore[arg-type]
        assert str(recipe) == text


def test_overrides() -> None:
    recipe = Recipe.parse("w8g32:head=w8,embed=f32,down_proj=f32,_0_.*_proj=w8g64")
    assert recipe.scheme_for("lm_head", "head") == Scheme(8)
    assert recipe.scheme_for("embed_tokens", "embedding") is None
    assert recipe.scheme_for("layers_0_down_proj", "linear") is None
    assert recipe.scheme_for("layers_0_up_proj", "linear") == Scheme(8, 64)
    assert recipe.scheme_for("layers_1_up_proj", "linear") == Scheme(8, 32)
    assert Recipe.parse(str(recipe)) == recipe


def test_experts_are_linears_of_their_own() -> None:
    assert Recipe.parse("w8:linear=f32").scheme_for("up_proj", "experts") is None
    recipe = Recipe.parse("f32:experts=w8g64,linear=w8")
    assert recipe.scheme_for("up_proj", "experts") == Scheme(8, 64)
    assert recipe.scheme_for("up_proj", "linear") == Scheme(8)
    assert recipe.scheme_for("lm_head", "head") is None


def test_a_pattern_is_in_a_name_or_refused() -> None:
    names = [f"layers_{i}_{name}_weight" for i in range(12) for name in ("up", "down")]
    Recipe.parse("w8:down=w4g32,_3_=f32,experts=w8,head=f32").check(names)  # roles may be idle
    with pytest.raises(PassError, match="'donw' in recipe 'w8:donw=w4g32' is in the name of no"):
        Recipe.parse("w8:donw=w4g32").check(names)
    with pytest.raises(PassError, match=r"are layers_N_up_weight, layers_N_down_weight \(N"):
        Recipe.parse("w8:_12_=f32").check(names)


@pytest.mark.parametrize(
    ("text", "reason"),
    (
        ("w3", "'w3' is not a quantization scheme"),
        ("w8:head", "'head' in recipe 'w8:head' is not PATTERN=SCHEME."),
        ("w8:(=f32", "'(' in recipe"),
    ),
)
def test_errors(text: str, reason: str) -> None:
    with pytest.raises(PassError) as error:
        Recipe.parse(text)
    assert reason in str(error.value)


def test_schemes_by_name() -> None:
    for text in ("w8", "w8g128", "w4g32", "w4g64z"):
        assert str(Scheme.parse(text)) == text
    for text in ("w4", "w8z", "w8g32z", "w4g16", "w2g32", "4"):
        with pytest.raises(PassError, match=f"'{text}' is not a quantization scheme"):
            Scheme.parse(text)


def test_schemes_for_inputs_that_do_not_divide() -> None:
    for text, inputs, expected in (
        ("w4g128", 576, "w4g64"),
        ("w4g64z", 96, "w4g32z"),
        ("w4g32", 48, "w8"),
        ("w8g64", 45, "w8"),
        ("w8", 45, "w8"),
    ):
        assert str(Scheme.parse(text).for_inputs(inputs)) == expected
