"""merge-projections."""

from __future__ import annotations

from typing import Any

import torch
from graphs import build_program, check_pass, fire, rows

from graphwright.ir import Level, format_graph
from graphwright.passes.merge_projections import MergeProjections, joined_name

aten = torch.ops.aten
linear, mul = aten.linear.default, aten.mul.Tensor


def head(x: Any, h: Any) -> Any:
    """A last linear, so that the others do not make the logits."""
    return linear(x, h)


def test_fires() -> None:
    def function(x: Any, l_q: Any, l_k: Any, l_v: Any, h: Any) -> Any:
        q, k, v = linear(x, l_q), linear(x, l_k), linear(x, l_v)
        return head(aten.cat.default([mul(q, q), k, v], -1), h)

    weights = {name: torch.rand(n, 8) for name, n in (("l_q", 6), ("l_k", 2), ("l_v", 4))}
    program = build_program(function, Level.NORMALIZED, x=rows(8), **weights, h=torch.rand(5, 12))
    check_pass(program, MergeProjections(), 1)
    assert (
        format_graph(program)
        == """\
%x : f32[1, T, 8] = input
%l_q_k_v : f32[12, 8] = weight
%h : f32[5, 12] = weight
%linear_1 : f32[1, T, 12] = aten.linear(%x, %l_q_k_v, None)
%slice_1 : f32[1, T, 6] = aten.slice.Tensor(%linear_1, -1, 0, 6)
%slice_2 : f32[1, T, 2] = aten.slice.Tensor(%linear_1, -1, 6, 8)
%slice_3 : f32[1, T, 4] = aten.slice.Tensor(%linear_1, -1, 8, 12)
%mul_1 : f32[1, T, 6] = aten.mul.Tensor(%slice_1, %slice_1)
%cat_1 : f32[1, T, 12] = aten.cat([%mul_1, %slice_2, %slice_3], -1)
%linear_2 : f32[1, T, 5] = aten.linear(%cat_1, %h)
return %linear_2
"""
    )
    assert program.weights["l_q_k_v"].describe() == "cat(constant, constant, constant)"


def test_zeros_for_a_missing_bias() -> None:
    def function(x: Any, a: Any, bias: Any, b: Any, h: Any) -> Any:
        return head(mul(linear(x, a, bias), linear(x, b)), h)

    program = build_program(
        function,
        x=rows(8),
        a=torch.rand(3, 8),
        bias=torch.rand(3),
        b=torch.rand(3, 8),
        h=torch.rand(5, 3),
    )
    check_pass(program, MergeProjections(), 1)


def test_near_misses() -> None:
    w = torch.rand(8, 8)

    def tied(x: Any, a: Any, b: Any, h: Any) -> Any:
        return head(mul(linear(linear(x, a), a), linear(x, b)), h)

    def headed(x: Any, a: Any, b: Any, h: Any) -> Any:
        return mul(linear(x, a), linear(x, b))

    def activated(x: Any, a: Any, b: Any, h: Any) -> Any:
        return head(mul(linear(linear(x, a), h), aten.relu.default(linear(x, b))), h)

    for function, reason in (
        (tied, "its weight 'a' is also used by 'linear_default_1'."),
        (headed, "it makes the logits."),
        (activated, "its result only goes into an activation, which becomes its epilogue."),
    ):
        program = build_program(function, x=rows(8), a=w, b=w, h=w)
        counts, misses = fire(program, MergeProjections())
        assert counts == [0]
        assert any(reason in miss for miss in misses), misses


def test_leaves_values_that_are_not_one_row_a_token() -> None:
    def function(x: Any, a: Any, b: Any, h: Any) -> Any:
        return head(mul(linear(x, a), linear(x, b)), h)

    w = torch.rand(8, 8)
    counts, misses = fire(build_program(function, x=rows(2, 8), a=w, b=w, h=w), MergeProjections())
    assert counts == [0]
    assert "is not one row of channels a token" in misses[0]


def test_joined_names() -> None:
    assert joined_name(["l0_q_proj", "l0_k_proj"]) == "l0_q_k_proj"
    assert joined_name(["a", "b"]) == "a_b"
    assert joined_name(["x_a_a_w", "x_a_w"]) == "x_a_a_w"
