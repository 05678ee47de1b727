"""fold-constants: rows that a constant condition takes and puts, all of them or none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from graphs import build_program, check_pass, fire, rows

from graphwright.ir import Level, format_graph
from graphwright.passes.fold_constants import FoldConstants

aten = torch.ops.aten
W, V = torch.randn(6, 6), torch.randn(6, 6)


def adapted(x: Any, language: Any, weights: dict[int, Any], *accumulate: bool) -> Any:
    """The rows of every language by its own weight; language [1]: that of the only text."""
    y = aten.zeros_like.default(x)
    for number, weight in weights.items():
        condition = aten.eq.Scalar(language, number)
        part = aten.linear.default(aten.index.Tensor(x, [condition]), weight)
        y = aten.index_put.default(y, [condition], part, *accumulate)
    return aten.add.Tensor(x, y)


def test_the_rows_of_one_language_are_all_and_those_of_others_none() -> None:
    program = build_program(
        lambda x, w, v, language: adapted(x, language, {0: v, 1: w, 2: v}),
        Level.CAPTURED,
        x=rows(6),
        w=W,
        v=V,
        language=torch.tensor([1]),
    )
    check_pass(program, FoldConstants(), 3 + 1 + 3, "exact")
    assert (
        format_graph(program)
        == """\
%x : f32[1, T, 6] = input
%w : f32[6, 6] = weight
%linear_1 : f32[1, T, 6] = aten.linear(%x, %w)
%add_1 : f32[1, T, 6] = aten.add.Tensor(%x, %linear_1)
return %add_1
"""
    )


def added(x: Any, w: Any, language: Any) -> Any:
    return adapted(x, language, {1: w}, True)


def of_several(x: Any, w: Any, language: Any) -> Any:
    wide = aten.cat.default([x, x], 0)
    some = aten.cat.default([aten.eq.Scalar(language, 0), aten.eq.Scalar(language, 1)], 0)
    return aten.index_put.default(wide, [some], aten.linear.default(x, w))


def by_content(x: Any, w: Any, language: Any) -> Any:
    first = aten.gt.Scalar(aten.select.int(aten.select.int(x, 1, 0), 1, 0), 0)
    return aten.index_put.default(x, [first], aten.linear.default(x, w))


@pytest.mark.parametrize("function", [added, of_several, by_content])
def test_near_misses_are_left(function: Callable[..., Any]) -> None:
    program = build_program(function, Level.CAPTURED, x=rows(6), w=W, language=torch.tensor([1]))
    fire(program, FoldConstants())
    assert "index_put" in format_graph(program)
