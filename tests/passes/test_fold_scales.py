"""fold-scales."""

from __future__ import annotations

from typing import Any

import torch
from graphs import build_program, check_pass, fire, rows

from graphwright.ir import format_graph
from graphwright.passes.fold_scales import FoldScales

aten = torch.ops.aten
linear, mul, div = aten.linear.default, aten.mul.Tensor, aten.div.Tensor


def test_fires() -> None:
    def function(x: Any, w: Any, b: Any, v: Any) -> Any:
        return mul(0.3, div(linear(mul(linear(x, w, b), 0.25), v), 3.0))

    program = build_program(
        function, x=rows(8), w=torch.rand(6, 8), b=torch.rand(6), v=torch.rand(4, 6)
    )
    check_pass(program, FoldScales(), 3)
    assert (
        format_graph(program)
        == """\
%x : f32[1, T, 8] = input
%v_scaled_scaled : f32[4, 6] = weight
%b_scaled : f32[6] = weight
%w_scaled : f32[6, 8] = weight
%linear_1 : f32[1, T, 6] = aten.linear(%x, %w_scaled, %b_scaled)
%linear_2 : f32[1, T, 4] = aten.linear(%linear_1, %v_scaled_scaled)
return %linear_2
"""
    )
    assert program.weights["w_scaled"].describe() == "mul(constant)"


def test_near_misses() -> None:
    def shared(x: Any, w: Any) -> Any:
        y = linear(x, w)
        return aten.add.Tensor(mul(y, 0.5), y)

    def tied(x: Any, w: Any) -> Any:
        return mul(linear(linear(x, w), w), 0.5)

    for function, reason in (
        (shared, "'linear_default' has 2 users."),
        (tied, "its weight 'w' has 2 users."),
        (lambda x, w: mul(linear(x, aten.neg.default(w)), 2.0), "its parameter 'neg_default' is"),
    ):
        counts, misses = fire(build_program(function, x=rows(8), w=torch.rand(8, 8)), FoldScales())
        assert counts == [0]
        assert reason in misses[0]
