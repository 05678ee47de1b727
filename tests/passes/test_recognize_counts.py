"""recognize-counts, and the bounds that it gives to tables looked up by counts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from graphs import build_program, fire, rows

from graphwright.ir import PassError, Program, format_graph
from graphwright.ir.interpreter import run_program
from graphwright.passes.recognize_counts import RecognizeCounts
from graphwright.passes.rewrite_positions import RewritePositions

aten = torch.ops.aten
STEP = RecognizeCounts()


def build(function: Any, **weights: torch.Tensor) -> Program:
    """A program over tokens, positions and weights."""
    inputs: Any = {
        name: rows(dtype=torch.int64, batch=False) for name in ("tokens", "positions")
    } | weights
    return build_program(function, **inputs)


def whole(x: Any, dtype: torch.dtype = torch.int64) -> Any:
    return aten._to_copy.default(x, dtype=dtype)


def marked(tokens: Any) -> Any:
    return aten.ne.Scalar(tokens, 1)


def check(function: Any) -> Program:
    """Fires once, gives the same numbers of the same type, and fires no more."""
    program = build(lambda tokens, positions: function(tokens))
    before = program.copy()
    assert fire(program, STEP)[0] == [1]
    for length in (1, 9):
        inputs = {"tokens": torch.arange(length) % 3, "positions": torch.arange(length)}
        want, got = run_program(before, inputs), run_program(program, inputs)
        assert want.dtype == got.dtype and torch.equal(want, got)
    assert fire(program, STEP)[0] == [0]
    return program


def test_a_count_of_tokens_is_a_recurrence() -> None:
    def function(tokens: Any) -> Any:
        row = aten.unsqueeze.default(whole(marked(tokens), torch.int32), 0)
        return aten.mul.Tensor(aten.cumsum.default(row, 1), row)

    program = check(function)
    assert (
        format_graph(program)
        == """\
%tokens : i64[T] = input
%positions : i64[T] = input
%ne_1 : bool[T] = aten.ne.Scalar(%tokens, 1)
%_to_copy_1 : i32[T] = aten._to_copy(%ne_1, dtype=int32)
%unsqueeze_1 : i32[1, T] = aten.unsqueeze(%_to_copy_1, 0)
%permute_1 : i32[T, 1] = aten.permute(%unsqueeze_1, [1, 0])
%_to_copy_2 : f32[T, 1] = aten._to_copy(%permute_1, dtype=float32)
%scan_along_tokens_1 : f32[T, 1] = gw.scan_along_tokens([%_to_copy_2], [])
  | %state_0 : f32[1, 1] = input
  | %row_1 : f32[1, 1] = input
  | %add_1 : f32[1, 1] = aten.add.Tensor(%state_0, %row_1)
  | return (%add_1, %add_1)
%_to_copy_3 : i64[T, 1] = aten._to_copy(%scan_along_tokens_1, dtype=int64)
%permute_2 : i64[1, T] = aten.permute(%_to_copy_3, [1, 0])
%mul_1 : i64[1, T] = aten.mul.Tensor(%permute_2, %unsqueeze_1)
return %mul_1
"""
    )
    assert program.info.max_context == 2**24  # as many as float32 counts


COUNTS: dict[str, Callable[[Any], Any]] = {
    "of a condition": lambda t: aten.cumsum.default(marked(t), 0),
    "of floats that were a condition": lambda t: aten.cumsum.default(
        whole(marked(t), torch.float32), 0
    ),
    "of a choice": lambda t: aten.cumsum.default(aten.where.Scalar(marked(t), 1, 0), -1),
    "of a remainder": lambda t: aten.cumsum.default(aten.remainder.Scalar(t, 2), 0),
    "of a product": lambda t: aten.cumsum.default(
        aten.mul.Tensor(whole(marked(t)), whole(aten.gt.Scalar(t, 0))), 0
    ),
    "several beside each other": lambda t: aten.cumsum.default(
        aten.stack.default([marked(t), aten.eq.Scalar(t, 0)], 0), 1
    ),
    "as int32": lambda t: aten.cumsum.default(marked(t), 0, dtype=torch.int32),
}


@pytest.mark.parametrize("name", COUNTS)
def test_counts_however_they_are_written(name: str) -> None:
    check(COUNTS[name])


NEAR_MISSES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "ids": (lambda t: aten.cumsum.default(t, 0), "whose values may be any numbers, not 0 or 1"),
    "differences": (
        lambda t: aten.cumsum.default(aten.sub.Tensor(whole(marked(t)), 1), 0),
        "whose values may be from -1 to 0, not 0 or 1",
    ),
    "floats": (
        lambda t: aten.cumsum.default(whole(t, torch.float32), 0),
        "whose values may be any numbers",
    ),
    "another axis": (
        lambda t: aten.cumsum.default(aten.stack.default([marked(t), marked(t)], 1), 1),
        "it does not run along the tokens",
    ),
    "a half": (
        lambda t: aten.cumsum.default(marked(t), 0, dtype=torch.float16),
        "it is of torch.float16",
    ),
    "pairs": (
        lambda t: aten.cumsum.default(
            aten.eq.Tensor(t, aten.unsqueeze.default(t, 1)), 0
        ),
        "a value for each pair of tokens",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NEAR_MISSES)
def test_near_misses_are_left(name: str) -> None:
    function, reason = NEAR_MISSES[name]
    program = build(lambda tokens, positions: function(tokens))
    before = format_graph(program)
    counts, misses = fire(program, STEP)
    assert counts == [0] and reason in misses[0] and "'cumsum" in misses[0]
    assert format_graph(program) == before


def test_positions_are_left_to_another_pass() -> None:
    program = build(
        lambda tokens, positions: aten.mul.Tensor(
            aten.cumsum.default(aten.ones_like.default(tokens), 0), tokens
        )
    )
    assert fire(program, STEP) == ([0], [])


def looked_up(tokens: Any, shift: int) -> Any:
    ones = whole(marked(tokens))
    return aten.add.Tensor(aten.mul.Tensor(aten.cumsum.default(ones, 0), ones), shift)


@pytest.mark.parametrize(("rows_of_table", "context"), [(32, 27), (200, 100)])
def test_a_table_looked_up_by_counts_bounds_the_context(rows_of_table: int, context: int) -> None:
    """The places 4 to 4 + the number of tokens."""
    program = build(
        lambda tokens, positions, p: aten.embedding.default(p, looked_up(tokens, 4)),
        p=torch.randn(rows_of_table, 4),
    )
    program.info = replace(program.info, max_context=100)
    fire(program, STEP, RewritePositions())
    assert program.info.max_context == context


def test_a_table_that_the_first_count_may_miss_is_refused() -> None:
    program = build(
        lambda tokens, positions, p: aten.embedding.default(p, looked_up(tokens, -1)),
        p=torch.randn(8, 4),
    )
    with pytest.raises(PassError, match=r"looks up 8 rows by .* may be -1 to 0 for the first"):
        fire(program, STEP, RewritePositions())
