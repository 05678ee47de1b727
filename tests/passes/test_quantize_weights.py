"""quantize-weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from graphs import build_program, fire, random_inputs, rows

from graphwright.ir import Level, Program, format_graph
from graphwright.ir.interpreter import run_program
from graphwright.ir.schemes import quantize_weight
from graphwright.passes.quantize_weights import QuantizeWeights
from graphwright.passes.recipe import Recipe

aten, gw = torch.ops.aten, torch.ops.gw


def decoder(tokens: Any, positions: Any, table: Any, places: Any, w: Any, b: Any) -> Any:
    x = gw.embedding.default(table, aten.unsqueeze.default(tokens, 0))
    p = gw.embedding.default(places, aten.unsqueeze.default(positions, 0))
    y, _ = gw.add_rms_norm.default(x, p, None, eps=1e-5)
    y = gw.linear.default(y, w, b, y, activation="silu")
    return gw.linear.default(y, table)


def program(size: int = 32) -> Program:
    torch.manual_seed(0)
    integers = rows(dtype=torch.int64, batch=False)
    return build_program(
        decoder,
        level=Level.FUSED,
        tokens=integers,
        positions=integers,
        table=torch.randn(11, size),
        places=torch.randn(9, size),
        w=torch.randn(size, size) * size**-0.5,
        b=torch.randn(size),
    )


def test_fires_and_shares_the_tied_weight() -> None:
    compiled = program()
    inputs = random_inputs(compiled, 5)
    want = run_program(compiled, inputs)
    step = QuantizeWeights(Recipe.parse("w8g32"))
    counts, misses = fire(compiled, step)
    assert counts == [3]
    assert misses == ["'embedding_default_1': the table 'places' is not read by token id."]
    assert compiled.level is Level.QUANTIZED
    assert (
        format_graph(compiled)
        == """\
%tokens : i64[T] = input
%positions : i64[T] = input
%w_scale : f32[32, 1] = weight
%w_w8g32 : i8[32, 32] = weight
%table_scale : f32[11, 1] = weight
%table_w8g32 : i8[11, 32] = weight
%places : f32[9, 32] = weight
%b : f32[32] = weight
%unsqueeze_1 : i64[1, T] = aten.unsqueeze(%tokens, 0)
%quantized_embedding_1 : f32[1, T, 32] = gw.quantized_embedding(%table_w8g32, %table_scale, \
%unsqueeze_1, scheme="w8g32")
%unsqueeze_2 : i64[1, T] = aten.unsqueeze(%positions, 0)
%embedding_1 : f32[1, T, 32] = gw.embedding(%places, %unsqueeze_2)
%add_rms_norm_1 : (f32[1, T, 32], f32[1, T, 32]) = gw.add_rms_norm(%quantized_embedding_1, \
%embedding_1, None, eps=1e-05)
%getitem_1 : f32[1, T, 32] = getitem(%add_rms_norm_1, 0)
%quantized_linear_1 : f32[1, T, 32] = gw.quantized_linear(%getitem_1, %w_w8g32, %w_scale, %b, \
%getitem_1, activation="silu", scheme="w8g32")
%quantized_linear_2 : f32[1, T, 11] = gw.quantized_linear(%quantized_linear_1, %table_w8g32, \
%table_scale, activation="none", scheme="w8g32")
return %quantized_linear_2
"""
    )
    got = run_program(compiled, inputs)
    assert float((got - want).norm() / want.norm()) < 0.02
    assert fire(compiled, step)[0] == [0]


def test_roles_and_names() -> None:
    for text, count in (
        ("f32", 0),
        ("w8:head=f32", 2),
        ("w8:embed=f32,^w$=f32", 1),
        ("f32:w=w8", 1),
    ):
        assert fire(program(), QuantizeWeights(Recipe.parse(text)))[0] == [count], text


def test_groups_that_do_not_divide_become_channels() -> None:
    compiled = program(48)
    counts, misses = fire(compiled, QuantizeWeights(Recipe.parse("w8g32")))
    assert counts == [3]
    assert (
        "'linear_default': 48 inputs of 'w' do not divide into groups of 32; it gets w8." in misses
    )
    assert compiled.output.kwargs["scheme"] == "w8"


def test_each_weight_is_quantized_once(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = program()
    fire(compiled, QuantizeWeights(Recipe.parse("w8")))
    calls: list[str] = []

    def counted(weight: torch.Tensor, scheme: str) -> tuple[torch.Tensor, ...]:
        calls.append(scheme)
        return quantize_weight(weight, scheme)

    monkeypatch.setattr("graphwright.passes.quantized_part.quantize_weight", counted)
    values, scale = compiled.weights["w_w8"].load(), compiled.weights["w_scale"].load()
    assert calls == ["w8"]
    assert (values.dtype, scale.shape) == (torch.int8, (32, 1))
    for _ in range(2):
        compiled.weights["w_w8"].load()
    assert len(calls) == 2, "results are dropped once they were taken twice"
    assert compiled.weights["w_w8"].describe() == "quantize_weight(constant)"


def test_experts_are_quantized_by_expert_row_and_group() -> None:
    def function(x: Any, ids: Any, w: Any, b: Any) -> Any:
        return gw.routed_linear.default(x, ids, w, b)

    torch.manual_seed(0)
    weight = torch.randn(8, 6, 64)
    compiled = build_program(
        function,
        level=Level.FUSED,
        x=rows(64, batch=False),
        ids=rows(2, dtype=torch.int64, batch=False),
        w=weight,
        b=torch.randn(8, 6),
    )
    inputs = random_inputs(compiled, 5)
    want = run_program(compiled, inputs)
    assert fire(compiled, QuantizeWeights(Recipe.parse("w8:experts=w8g32")))[0] == [1]
    assert (
        format_graph(compiled)
        == """\
%x : f32[T, 64] = input
%ids : i64[T, 2] = input
%w_scale : f32[8, 6, 2] = weight
%w_w8g32 : i8[8, 6, 64] = weight
%b : f32[8, 6] = weight
%quantized_routed_linear_1 : f32[T, 2, 6] = gw.quantized_routed_linear(%x, %ids, %w_w8g32, \
%w_scale, %b, scheme="w8g32")
return %quantized_routed_linear_1
"""
    )
    got = run_program(compiled, inputs)
    assert 0 < float((got - want).abs().max()) < 0.05 * float(want.abs().max())
    for expert in (0, 7):
        alone = quantize_weight(weight[expert], "w8g32")
        stored = [compiled.weights[name].load()[expert] for name in ("w_w8g32", "w_scale")]
        assert all(torch.equal(a, b) for a, b in zip(alone, stored, strict=True))
    assert fire(compiled, QuantizeWeights(Recipe.parse("w8g32")))[0] == [0]
