"""eliminate-common-subexpressions."""

from __future__ import annotations

from typing import Any

import torch
from graphs import build_program, check_pass, fire, rows

from graphwright.ir import Level, format_graph
from graphwright.passes.eliminate_common_subexpressions import EliminateCommonSubexpressions

aten = torch.ops.aten
STEP = EliminateCommonSubexpressions()


def test_equal_calls_are_one() -> None:
    def function(x: Any) -> Any:
        left = aten.cat.default([aten.neg.default(x), x], -1)
        right = aten.cat.default([aten.neg.default(x), x], -1)
        return aten.mul.Tensor(left, right)

    program = build_program(function, x=rows(4))
    check_pass(program, STEP, 2, "exact")
    expected = """\
%x : f32[1, T, 4] = input
%neg_1 : f32[1, T, 4] = aten.neg(%x)
%cat_1 : f32[1, T, 8] = aten.cat([%neg_1, %x], -1)
%mul_1 : f32[1, T, 8] = aten.mul.Tensor(%cat_1, %cat_1)
return %mul_1
"""
    assert format_graph(program) == expected


def test_two_names_of_one_weight_are_one() -> None:
    program = build_program(
        lambda x, a, b: aten.mul.Tensor(aten.add.Tensor(x, a), b),
        x=rows(4),
        a=torch.ones(4),
        b=torch.ones(4),
    )
    assert fire(program, STEP)[0] == [0]  # equal values are not one weight
    program.weights["b"] = program.weights["a"]
    assert fire(program, STEP)[0] == [1]
    assert list(program.weights) == ["a"]


def test_what_differs_stays() -> None:
    def function(x: Any) -> Any:
        values = [
            aten.add.Tensor(x, 1),
            aten.add.Tensor(x, 1.0),
            aten.add.Tensor(x, True),
            aten.add.Tensor(x, 1, alpha=2),
            aten.bernoulli.default(aten.sigmoid.default(x)),
            aten.bernoulli.p(x, 0.5),
            aten.bernoulli.p(x, 0.5),
        ]
        return aten.cat.default(values, -1)

    program = build_program(function, Level.CAPTURED, x=rows(4))
    assert fire(program, STEP)[0] == [0]
