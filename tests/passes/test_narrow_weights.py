"""narrow-weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from graphs import build_program, fire, random_inputs, rows

from graphwright.ir import Level, Program, format_graph
from graphwright.ir.errors import PassError
from graphwright.ir.interpreter import run_program
from graphwright.passes.narrow_weights import NarrowWeights
from graphwright.passes.quantize_weights import QuantizeWeights
from graphwright.passes.recipe import Recipe

aten, gw = torch.ops.aten, torch.ops.gw


def decoder(tokens: Any, positions: Any, table: Any, places: Any, w: Any, b: Any) -> Any:
    x = gw.embedding.default(table, tokens)
    p = gw.embedding.default(places, positions)
    y, _ = gw.add_rms_norm.default(x, p, None, eps=1e-5)
    y = gw.linear.default(y, w, b, y, activation="silu")
    return gw.linear.default(y, table)


def program(large: float = 1.0) -> Program:
    torch.manual_seed(0)
    integers = rows(dtype=torch.int64, batch=False)
    weight = torch.randn(32, 32) * 32**-0.5
    weight[3, 4] = large
    return build_program(
        decoder,
        level=Level.FUSED,
        tokens=integers,
        positions=integers,
        table=torch.randn(11, 32),
        places=torch.randn(9, 32),
        w=weight,
        b=torch.randn(32),
    )


def test_fires_and_shares_the_tied_weight() -> None:
    compiled = program()
    inputs = random_inputs(compiled, 5)
    want = run_program(compiled, inputs)
    step = NarrowWeights(Recipe.parse("bf16"))
    counts, misses = fire(compiled, step)
    assert counts == [3]
    assert misses == ["'embedding_default_1': the table 'places' is not read by token id."]
    assert (
        format_graph(compiled)
        == """\
%tokens : i64[T] = input
%positions : i64[T] = input
%w_bf16 : bf16[32, 32] = weight
%table_bf16 : bf16[11, 32] = weight
%places : f32[9, 32] = weight
%b : f32[32] = weight
%embedding_1 : f32[T, 32] = gw.embedding(%table_bf16, %tokens)
%embedding_2 : f32[T, 32] = gw.embedding(%places, %positions)
%add_rms_norm_1 : (f32[T, 32], f32[T, 32]) = gw.add_rms_norm(%embedding_1, %embedding_2, None, \
eps=1e-05)
%getitem_1 : f32[T, 32] = getitem(%add_rms_norm_1, 0)
%linear_1 : f32[T, 32] = gw.linear(%getitem_1, %w_bf16, %b, %getitem_1, activation="silu")
%linear_2 : f32[T, 11] = gw.linear(%linear_1, %table_bf16)
return %linear_2
"""
    )
    got = run_program(compiled, inputs)
    assert 0 < float((got - want).norm() / want.norm()) < 0.005
    assert fire(compiled, step)[0] == [0]


def test_the_recipe_decides_and_leaves_the_rest_to_quantization() -> None:
    for text, narrowed, quantized in (
        ("f32", 0, 0),
        ("f16", 3, 0),
        ("w8:head=f16", 1, 2),
        ("bf16:^w$=w8", 2, 1),
        ("f32:embed=bf16", 1, 0),
    ):
        compiled, recipe = program(), Recipe.parse(text)
        assert str(recipe) == text
        assert fire(compiled, NarrowWeights(recipe))[0] == [narrowed], text
        assert fire(compiled, QuantizeWeights(recipe))[0] == [quantized], text


def test_experts_are_narrowed() -> None:
    def function(x: Any, ids: Any, w: Any, b: Any) -> Any:
        return gw.routed_linear.default(x, ids, w, b)

    torch.manual_seed(0)
    weight = torch.randn(4, 6, 16)
    compiled = build_program(
        function,
        level=Level.FUSED,
        x=rows(16, batch=False),
        ids=rows(2, dtype=torch.int64, batch=False),
        w=weight,
        b=torch.randn(4, 6),
    )
    assert fire(compiled, NarrowWeights(Recipe.parse("f32:experts=f16")))[0] == [1]
    assert torch.equal(compiled.weights["w_f16"].load(), weight.half())
    assert compiled.weights["w_f16"].describe() == "narrow_weight(constant)"


def test_weights_beyond_float16_are_refused_by_name() -> None:
    compiled = program(large=70000.0)
    fire(compiled, NarrowWeights(Recipe.parse("f16")))
    with pytest.raises(PassError, match="'w': weights of up to 70000 overflow f16, which ends at"):
        compiled.weights["w_f16"].load()
    for fits in (program(large=65519.0), program(large=float("inf"))):
        fire(fits, NarrowWeights(Recipe.parse("f16")))
        assert fits.weights["w_f16"].load().shape == (32, 32)


@pytest.mark.parametrize("text", ["f32:tabel=bf16", "w8:tabel=w4g32"])
def test_a_pattern_of_no_weight_is_refused(text: str) -> None:
    """By the first of the passes that have a recipe, before anything is rounded."""
    with pytest.raises(
        PassError, match=r"'tabel' in recipe .* no weight; there are table, places, w"
    ):
        fire(program(), NarrowWeights(Recipe.parse(text)))
