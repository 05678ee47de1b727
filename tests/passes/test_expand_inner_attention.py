"""expand-inner-attention."""

from __future__ import annotations

from typing import Any

import torch
from graphs import build_program, check_pass, fire, rows

from graphwright.ir import Program, format_graph
from graphwright.passes.expand_inner_attention import ExpandInnerAttention

aten = torch.ops.aten
STEP = ExpandInnerAttention()
OPERANDS = {name: rows(2, 4) for name in "qkv"}


def build(function: Any, **weights: torch.Tensor) -> Program:
    """A program over q, k and v [1, T, 2, 4]: two heads of four channels a token."""
    return build_program(function, **OPERANDS, **weights)  # type: ignore[arg-type]


def test_attention_over_heads_is_written_out() -> None:
    sdpa = aten.scaled_dot_product_attention.default
    program = build(lambda q, k, v: sdpa(q, k, v, scale=0.5))
    check_pass(program, STEP, 3)  # the attention, and the two products it becomes
    expected = """\
%q : f32[1, T, 2, 4] = input
%k : f32[1, T, 2, 4] = input
%v : f32[1, T, 2, 4] = input
%permute_1 : f32[1, T, 4, 2] = aten.permute(%k, [0, 1, 3, 2])
%permute_2 : f32[1, T, 2, 4] = aten.permute(%permute_1, [0, 1, 3, 2])
%unsqueeze_1 : f32[1, T, 2, 1, 4] = aten.unsqueeze(%q, 3)
%unsqueeze_2 : f32[1, T, 1, 2, 4] = aten.unsqueeze(%permute_2, 2)
%mul_1 : f32[1, T, 2, 2, 4] = aten.mul.Tensor(%unsqueeze_1, %unsqueeze_2)
%sum_1 : f32[1, T, 2, 2] = aten.sum.dim_IntList(%mul_1, [-1])
%mul_2 : f32[1, T, 2, 2] = aten.mul.Tensor(%sum_1, 0.5)
%softmax_1 : f32[1, T, 2, 2] = aten.softmax.int(%mul_2, -1)
%permute_3 : f32[1, T, 4, 2] = aten.permute(%v, [0, 1, 3, 2])
%unsqueeze_3 : f32[1, T, 2, 1, 2] = aten.unsqueeze(%softmax_1, 3)
%unsqueeze_4 : f32[1, T, 1, 4, 2] = aten.unsqueeze(%permute_3, 2)
%mul_3 : f32[1, T, 2, 4, 2] = aten.mul.Tensor(%unsqueeze_3, %unsqueeze_4)
%sum_2 : f32[1, T, 2, 4] = aten.sum.dim_IntList(%mul_3, [-1])
return %sum_2
"""
    assert format_graph(program) == expected


def test_masks_within_a_token() -> None:
    sdpa = aten.scaled_dot_product_attention.default
    check_pass(build(lambda q, k, v: sdpa(q, k, v, None, 0.0, True)), STEP, 3)
    keep = torch.tensor([[True, False], [True, True]])
    check_pass(build(lambda q, k, v, m: sdpa(q, k, v, m), m=keep), STEP, 3)
    check_pass(build(lambda q, k, v, m: sdpa(q, k, v, m), m=torch.randn(2, 2)), STEP, 3)


def test_products_within_a_token() -> None:
    def function(q: Any, k: Any, v: Any) -> Any:
        return aten.matmul.default(aten.matmul.default(q, aten.permute.default(k, [0, 1, 3, 2])), v)

    check_pass(build(function), STEP, 2)


def test_products_over_tokens_and_with_weights_are_left() -> None:
    def over_tokens(q: Any, k: Any, v: Any) -> Any:
        q, k, v = (aten.permute.default(x, [0, 2, 1, 3]) for x in (q, k, v))
        return aten.scaled_dot_product_attention.default(q, k, v, None, 0.0, True)

    assert fire(build(over_tokens), STEP) == ([0], [])
    weighted = build(lambda q, k, v, w: aten.matmul.default(q, w), w=torch.randn(4, 3))
    assert fire(weighted, STEP) == ([0], [])


def test_dropout_within_a_token_is_left_with_the_reason() -> None:
    sdpa = aten.scaled_dot_product_attention.default
    counts, misses = fire(build(lambda q, k, v: sdpa(q, k, v, None, 0.1)), STEP)
    assert counts == [0] and "within a token, with dropout" in misses[0]
