"""fuse-linear."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from graphs import build_program, check_pass, fire, rows

from graphwright.ir import format_graph
from graphwright.passes.activation_patterns import ACTIVATION_PATTERNS
from graphwright.passes.fuse_linear import FuseLinear

aten = torch.ops.aten
linear, add = aten.linear.default, aten.add.Tensor


def test_bias_activation_and_residual() -> None:
    def function(x: Any, y: Any, w: Any, b: Any) -> Any:
        return add(y, aten.gelu.default(add(linear(x, w), b), approximate="tanh"))

    program = build_program(function, x=rows(8), y=rows(6), w=torch.rand(6, 8), b=torch.rand(6))
    check_pass(program, FuseLinear(), 4)
    assert (
        format_graph(program)
        == """\
%x : f32[1, T, 8] = input
%y : f32[1, T, 6] = input
%w : f32[6, 8] = weight
%b : f32[6] = weight
%linear_1 : f32[1, T, 6] = gw.linear(%x, %w, %b, %y, activation="gelu_tanh")
return %linear_1
"""
    )


@pytest.mark.parametrize(("name", "activation"), ACTIVATION_PATTERNS)
def test_every_activation(name: str, activation: Any) -> None:
    program = build_program(
        lambda x, w: activation(linear(x, w)), x=rows(8), w=torch.randn(6, 8) * 0.3
    )
    check_pass(program, FuseLinear(), 3 if name == "relu2" else 2)
    assert program.output.kwargs == {"activation": name}


@pytest.mark.parametrize("order", ("left", "right"))
def test_parallel_branches(order: str) -> None:
    """x + attention + feed-forward: both products are absorbed, whichever sum comes first."""

    def function(x: Any, w: Any, v: Any) -> Any:
        a, b = linear(x, w), aten.relu.default(linear(x, v))
        return add(add(x, a), b) if order == "left" else add(add(a, b), x)

    program = build_program(function, x=rows(8), w=torch.rand(8, 8), v=torch.rand(8, 8))
    check_pass(program, FuseLinear(), 5)
    assert "aten" not in format_graph(program)


def test_a_shared_product_keeps_its_activation_outside() -> None:
    def function(x: Any, w: Any) -> Any:
        y = linear(x, w)
        return aten.mul.Tensor(aten.relu.default(y), y)

    counts, misses = fire(build_program(function, x=rows(8), w=torch.rand(8, 8)), FuseLinear())
    assert counts == [1]
    assert misses == [
        "'relu_default': the intermediate 'linear_default_1' is also used by 'mul_tensor'."
    ]


def test_near_misses() -> None:
    w = torch.rand(8, 8)
    for function, rewrites, reason in (
        (lambda x, w: add(linear(x, w), 1.0), 1, "the summand 1.0 is a number."),
        (lambda x, w: add(linear(x, w), aten.select.int(w, 0, 0)), 1, "[8] is not [1, "),
        (lambda x, w: linear(x, aten.neg.default(w)), 0, "the matrix 'neg_default' is not a"),
        (
            lambda x, w: linear(aten.permute.default(x, [0, 2, 1, 3]), w),
            0,
            "has no row for each token.",
        ),
    ):
        shape = rows(2, 8) if rewrites == 0 and "row" in reason else rows(8)
        counts, misses = fire(build_program(function, x=shape, w=w), FuseLinear())
        assert counts == [rewrites]
        assert any(reason in miss for miss in misses), misses
