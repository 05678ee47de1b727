"""canonicalize-ops: choices along the last axis."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
from graphs import build_program, check_pass, fire, random_inputs, rows

from graphwright.ir import Level, Program, format_graph
from graphwright.ir.interpreter import run_program
from graphwright.ir.tolerance import check_close
from graphwright.passes.canonicalize_ops import CanonicalizeOps

aten = torch.ops.aten
EXPERTS = 8


def program_of(function: Callable[..., Any]) -> Program:
    return build_program(
        function,
        level=Level.CAPTURED,
        tokens=rows(dtype=torch.int64, batch=False),
        x=rows(EXPERTS, batch=False),
        i=rows(2, dtype=torch.int64, batch=False),
    )


def check(function: Callable[..., Any]) -> str:
    """The canonical graph of `function`, which computes the same and does not change any more."""
    program = program_of(function)
    before = program.copy()
    fire(program, CanonicalizeOps())
    for tokens in (1, 6):
        inputs = random_inputs(before, tokens)
        inputs["i"] = torch.stack([torch.randperm(EXPERTS)[:2] for _ in range(tokens)])
        check_close(run_program(program, inputs), run_program(before, inputs), "exact")
    assert fire(program, CanonicalizeOps())[0] == [0]
    return format_graph(program)


def part(pair: Any, number: int) -> Any:
    return operator.getitem(pair, number)


CHOICES = {
    "topk": lambda x: part(aten.topk.default(x, 3), 0),
    "topk-indices": lambda x: part(aten.topk.default(x, 3), 1),
    "topk-of-groups": lambda x: part(aten.topk.default(aten.reshape.default(x, [-1, 4, 2]), 1), 0),
    "smallest": lambda x: part(aten.topk.default(x, 3, -1, False), 0),
    "smallest-indices": lambda x: part(aten.topk.default(x, 3, 1, False), 1),
    "sort": lambda x: part(aten.sort.default(x, -1, True), 1),
    "sort-ascending": lambda x: part(aten.sort.default(x), 0),
    "sort-stable": lambda x: part(aten.sort.stable(x, stable=True, dim=1, descending=True), 0),
    "max": lambda x: part(aten.max.dim(x, 1, True), 1),
    "min": lambda x: part(aten.min.dim(x, 1), 1),
    "argmax": lambda x: aten.argmax.default(x, -1),
    "argmin": lambda x: aten.argmin.default(x, -1, True),
}


@pytest.mark.parametrize("name", CHOICES)
def test_choices_become_top_k(name: str) -> None:
    text = check(lambda tokens, x, i: CHOICES[name](x))
    assert "gw.top_k" in text


def test_a_gather_by_the_choice_itself_is_its_values() -> None:
    def function(tokens: Any, x: Any, i: Any) -> Any:
        return aten.gather.default(x, 1, part(aten.topk.default(x, 2), 1))

    assert (
        check(function)
        == """\
%tokens : i64[T] = input
%x : f32[T, 8] = input
%i : i64[T, 2] = input
%top_k_1 : (f32[T, 2], i64[T, 2]) = gw.top_k(%x, k=2)
%getitem_1 : f32[T, 2] = getitem(%top_k_1, 0)
return %getitem_1
"""
    )


def test_a_gather_from_equal_entries_is_the_entry() -> None:
    same = torch.full((6, 8), 3)
    program = build_program(
        lambda tokens, i, table: aten.gather.default(table, 1, i),
        tokens=rows(dtype=torch.int64, batch=False), i=rows(2, dtype=torch.int64, batch=False),
        table=same,
    )  # fmt: skip
    check_pass(program, CanonicalizeOps(), 1)
    assert "aten.full_like(%i, 3, dtype=int64)" in format_graph(program)


def test_a_gather_compares_places() -> None:
    text = check(lambda tokens, x, i: aten.gather.default(aten.sigmoid.default(x), -1, i))
    assert (
        text
        == """\
%tokens : i64[T] = input
%x : f32[T, 8] = input
%i : i64[T, 2] = input
%places_8 : i64[8] = weight
%sigmoid_1 : f32[T, 8] = aten.sigmoid(%x)
%unsqueeze_1 : i64[T, 2, 1] = aten.unsqueeze(%i, 2)
%eq_1 : bool[T, 2, 8] = aten.eq.Tensor(%unsqueeze_1, %places_8)
%unsqueeze_2 : f32[T, 1, 8] = aten.unsqueeze(%sigmoid_1, 1)
%where_1 : f32[T, 2, 8] = aten.where.ScalarOther(%eq_1, %unsqueeze_2, 0)
%sum_1 : f32[T, 2] = aten.sum.dim_IntList(%where_1, [-1])
return %sum_1
"""
    )


SCATTERS = {
    "value": lambda x, i: aten.scatter.value(x, 1, i, float("-inf")),
    "into zeros": lambda x, i: aten.scatter.value(aten.zeros_like.default(x), -1, i, 1),
    "into a mask": lambda x, i: aten.scatter.value(
        aten.zeros_like.default(x, dtype=torch.bool), -1, i, True
    ),
    "into minus infinity": lambda x, i: aten.scatter.src(
        aten.full_like.default(x, float("-inf")), 1, i, aten.slice.Tensor(x, 1, 4, 6)
    ),
    "source": lambda x, i: aten.scatter.src(x, 1, i, aten.slice.Tensor(x, 1, 3, 5)),
    "added": lambda x, i: aten.scatter_add.default(x, 1, i, aten.slice.Tensor(x, 1, 0, 2)),
    "one hot": lambda x, i: aten.sum.dim_IntList(aten.one_hot.default(i, EXPERTS), [1]),
}  # fmt: skip


@pytest.mark.parametrize("name", SCATTERS)
def test_scatters_compare_places(name: str) -> None:
    text = check(lambda tokens, x, i: SCATTERS[name](x, i))
    assert "scatter" not in text and "one_hot" not in text and "aten.eq.Tensor" in text


LEFT = {
    "along tokens": lambda x, i: part(aten.topk.default(x, 1, 0), 0),
    "integers": lambda x, i: part(aten.topk.default(i, 1), 0),
    "gather along tokens": lambda x, i: aten.gather.default(x, 0, i),
    "scatter along tokens": lambda x, i: aten.scatter.value(x, 0, i, 1.0),
}


@pytest.mark.parametrize("name", LEFT)
def test_near_misses(name: str) -> None:
    program = program_of(lambda tokens, x, i: LEFT[name](x, i))
    before = format_graph(program)
    assert fire(program, CanonicalizeOps())[0] == [0]
    assert format_graph(program) == before
