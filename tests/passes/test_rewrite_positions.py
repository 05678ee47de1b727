"""rewrite-positions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from graphs import build_program, fire, rows

from graphwright.ir import Program, format_graph
from graphwright.ir.interpreter import run_program
from graphwright.passes.rewrite_positions import RewritePositions

aten = torch.ops.aten
STEP = RewritePositions()
TABLE = torch.randn(32, 4)
INPUTS = {
    "tokens": rows(dtype=torch.int64, batch=False),
    "positions": rows(dtype=torch.int64, batch=False),
}


def build(function: Any, **weights: torch.Tensor) -> Program:
    """A program over tokens, positions and weights."""
    return build_program(function, **INPUTS, **weights)  # type: ignore[arg-type]


def check(program: Program, count: int) -> None:
    """Fires `count` times, keeps the numbers of a sequence that starts at 0, then fires no more."""
    before = program.copy()
    assert fire(program, STEP)[0] == [count]
    for length in (1, 7):
        inputs = {"tokens": torch.arange(length) % 3, "positions": torch.arange(length)}
        assert torch.equal(run_program(program, inputs), run_program(before, inputs))
    assert fire(program, STEP)[0] == [0]


def length_of(tokens: Any) -> Any:
    return aten.sym_size.int(tokens, 0)


def later(program: Program) -> torch.Tensor:
    """The result for tokens that are not the first of their sequence."""
    return run_program(
        program, {"tokens": torch.tensor([1, 1, 2]), "positions": torch.tensor([4, 9, 0])}
    )


def test_a_counter_is_the_positions() -> None:
    def function(tokens: Any, positions: Any, e: Any, p: Any) -> Any:
        place = aten.add.Tensor(aten.arange.default(length_of(tokens)), 2)
        return aten.add.Tensor(aten.embedding.default(e, tokens), aten.embedding.default(p, place))

    program = build(function, e=torch.randn(3, 4), p=TABLE)
    check(program, 1)
    expected = """\
%tokens : i64[T] = input
%positions : i64[T] = input
%e : f32[3, 4] = weight
%p : f32[32, 4] = weight
%add_1 : i64[T] = aten.add.Tensor(%positions, 2)
%embedding_1 : f32[T, 4] = aten.embedding(%e, %tokens)
%embedding_2 : f32[T, 4] = aten.embedding(%p, %add_1)
%add_2 : f32[T, 4] = aten.add.Tensor(%embedding_1, %embedding_2)
return %add_2
"""
    assert format_graph(program) == expected


COUNTERS = {
    "cumsum of ones": lambda t: aten.cumsum.default(aten.ones_like.default(t), 0),
    "int32": lambda t: aten.arange.default(length_of(t), dtype=torch.int32),
    "float": lambda t: aten.arange.default(length_of(t), dtype=torch.float32),
    "a row": lambda t: aten.unsqueeze.default(aten.arange.default(length_of(t)), 0),
    "clamped": lambda t: aten.clamp.default(aten.arange.default(length_of(t)), max=3),
}


@pytest.mark.parametrize("name", COUNTERS)
def test_counters_however_they_are_computed(name: str) -> None:
    program = build(lambda tokens, positions: aten.mul.Tensor(COUNTERS[name](tokens), tokens))
    check(program, 1)
    offset = 1 if name == "cumsum of ones" else 0
    want = torch.tensor([4, 9, 0]) + offset
    want = want.clamp(max=3) if name == "clamped" else want
    assert torch.equal(later(program).reshape(-1).long(), want * torch.tensor([1, 1, 2]))


def test_a_slice_of_a_table_is_an_embedding() -> None:
    def function(tokens: Any, positions: Any, p: Any) -> Any:
        rows_of_table = aten.slice.Tensor(p, 0, 0, length_of(tokens))
        return aten.mul.Tensor(rows_of_table, aten.unsqueeze.default(tokens, 1))

    program = build(function, p=TABLE)
    check(program, 1)
    want = TABLE[torch.tensor([4, 9, 0])] * torch.tensor([[1], [1], [2]])
    assert torch.equal(later(program), want)


def test_a_slice_of_a_table_with_a_batch_axis_is_an_index_select() -> None:
    def function(tokens: Any, positions: Any, p: Any) -> Any:
        rows_of_table = aten.slice.Tensor(p, 1, 0, length_of(tokens))
        return aten.mul.Tensor(rows_of_table, aten.unsqueeze.default(tokens, 1))

    program = build(function, p=TABLE[None])
    check(program, 1)
    assert "aten.index_select(%p, 1, %positions)" in format_graph(program)


def test_positions_masks_and_row_numbers_stay() -> None:
    """What follows from the positions input; a mask; an index into rows of the step."""

    def function(tokens: Any, positions: Any) -> Any:
        place = aten.arange.default(length_of(tokens))
        mask = aten.le.Tensor(aten.unsqueeze.default(place, 0), aten.unsqueeze.default(place, 1))
        picked = aten.index_select.default(tokens, 0, place)
        scores = aten.mul.Tensor(
            aten.unsqueeze.default(picked, 1), aten.unsqueeze.default(picked, 0)
        )
        kept = aten.masked_fill.Scalar(scores, mask, 0)
        return aten.add.Tensor(kept, aten.add.Tensor(positions, 0))

    program = build(function)
    assert fire(program, STEP)[0] == [0]


def test_a_value_that_differs_by_row_and_is_no_position_is_named() -> None:
    def function(tokens: Any, positions: Any) -> Any:
        ones = aten.ones.default([1], dtype=torch.int64)
        rest = aten.zeros_like.default(aten.slice.Tensor(tokens, 0, 1, 2**63 - 1))
        return aten.add.Tensor(aten.cat.default([ones, rest], 0), tokens)

    counts, misses = fire(build(function), STEP)
    assert counts == [0]
    assert "differs by the place of a token in the step" in misses[0]


@pytest.mark.parametrize("context", [None, 20, 256])
def test_the_context_ends_where_a_table_of_positions_does(context: int | None) -> None:
    """32 rows, of which the first two are skipped: 30 positions."""

    def function(tokens: Any, positions: Any, e: Any, p: Any) -> Any:
        place = aten.add.Tensor(aten.arange.default(length_of(tokens)), 2)
        return aten.add.Tensor(aten.embedding.default(e, tokens), aten.embedding.default(p, place))

    program = build(function, e=torch.randn(3, 4), p=TABLE)
    program.info = replace(program.info, max_context=context)
    _, misses = fire(program, STEP)
    assert program.info.max_context == min(context or 30, 30)
    assert (context == 20) == (misses == [])
    assert context == 20 or "looks up 32 rows of 'p'" in misses[0]
