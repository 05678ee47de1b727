"""recognize-rope."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from graphs import build_program, check_pass, fire, rows

from graphwright.ir import Program, format_graph
from graphwright.passes.recognize_rope import RecognizeRope

aten = torch.ops.aten
HEADS, SIZE = 2, 8


def part(x: Any, start: int, stop: int, step: int = 1) -> Any:
    return aten.slice.Tensor(x, 3, start, stop, step)


def rotate_half(x: Any, size: int = SIZE) -> Any:
    first, second = part(x, 0, size // 2), part(x, size // 2, size)
    return aten.cat.default([aten.neg.default(second), first], -1)


def rotate_pairs(x: Any, size: int = SIZE) -> Any:
    first, second = part(x, 0, size, 2), part(x, 1, size, 2)
    return aten.stack.default([aten.neg.default(second), first], -1)


def turn(x: Any, cos: Any, sin: Any, size: int = SIZE) -> Any:
    x_cos, x_sin = aten.mul.Tensor(x, cos), aten.mul.Tensor(rotate_half(x, size), sin)
    return aten.add.Tensor(x_cos, x_sin)


def heads_first(x: Any) -> Any:
    return aten.permute.default(x, [0, 2, 1, 3])


def program_of(function: Any, size: int = SIZE) -> Program:
    """function(x [1, T, H, D], cos, sin [1, T, size])"""
    program = build_program(
        lambda tokens, x, cos, sin: function(x, cos, sin),
        tokens=rows(dtype=torch.int64, batch=False),
        x=rows(HEADS, SIZE),
        cos=rows(size),
        sin=rows(size),
    )
    program.clean()
    return program


def test_heads_in_front_of_tokens() -> None:
    def function(x: Any, cos: Any, sin: Any) -> Any:
        cos, sin = (aten.unsqueeze.default(t, 1) for t in (cos, sin))
        return heads_first(turn(heads_first(x), cos, sin))

    program = program_of(function)
    check_pass(program, RecognizeRope(), 1)
    assert (
        format_graph(program)
        == """\
%tokens : i64[T] = input
%x : f32[1, T, 2, 8] = input
%cos : f32[1, T, 8] = input
%sin : f32[1, T, 8] = input
%reshape_1 : f32[T, 2, 8] = aten.reshape(%x, [-1, 2, 8])
%reshape_2 : f32[T, 8] = aten.reshape(%cos, [-1, 8])
%reshape_3 : f32[T, 8] = aten.reshape(%sin, [-1, 8])
%rope_1 : f32[T, 2, 8] = gw.rope(%reshape_1, %reshape_2, %reshape_3, interleaved=False)
%reshape_4 : f32[1, T, 2, 8] = aten.reshape(%rope_1, [1, -1, 2, 8])
return %reshape_4
"""
    )


def swapped(x: Any, cos: Any, sin: Any) -> Any:
    cos, sin = (aten.unsqueeze.default(t, 2) for t in (cos, sin))
    return aten.add.Tensor(aten.mul.Tensor(sin, rotate_half(x)), aten.mul.Tensor(cos, x))


def repeated(x: Any, cos: Any, sin: Any) -> Any:
    """Keys that are expanded to more heads before they are turned."""
    cos, sin = (aten.unsqueeze.default(t, 1) for t in (cos, sin))
    x = aten.expand.default(aten.unsqueeze.default(x, 3), [-1, -1, -1, 3, -1])
    return turn(heads_first(aten.reshape.default(x, [1, -1, 3 * HEADS, SIZE])), cos, sin)


def pairs(x: Any, cos: Any, sin: Any) -> Any:
    cos, sin = (aten.unsqueeze.default(t, 2) for t in (cos, sin))
    turned = aten.reshape.default(rotate_pairs(x), [1, -1, HEADS, SIZE])
    return aten.add.Tensor(aten.mul.Tensor(x, cos), aten.mul.Tensor(turned, sin))


@pytest.mark.parametrize("function", [swapped, repeated, pairs])
def test_spellings(function: Any) -> None:
    program = program_of(function)
    check_pass(program, RecognizeRope(), 1)
    (node,) = [n for n in program.graph.nodes if n.target is torch.ops.gw.rope.default]
    assert node.kwargs == {"interleaved": function is pairs}
    assert node.args[0].meta["val"].shape[1:] == (HEADS, SIZE)


def halves(x: Any, cos: Any, sin: Any, interleaved: bool = False) -> Any:
    cos, sin = (aten.unsqueeze.default(t, 2) for t in (cos, sin))
    bounds = ((0, SIZE, 2), (1, SIZE, 2)) if interleaved else ((0, SIZE // 2), (SIZE // 2, SIZE))
    first, second = (part(x, *bound) for bound in bounds)
    minus = aten.sub.Tensor(aten.mul.Tensor(first, cos), aten.mul.Tensor(second, sin))
    plus = aten.add.Tensor(aten.mul.Tensor(second, cos), aten.mul.Tensor(first, sin))
    if interleaved:
        return aten.reshape.default(aten.stack.default([minus, plus], -1), [1, -1, HEADS, SIZE])
    return aten.cat.default([minus, plus], -1)


@pytest.mark.parametrize("interleaved", [False, True])
def test_tables_of_half_the_size(interleaved: bool) -> None:
    def function(x: Any, cos: Any, sin: Any) -> Any:
        return halves(x, cos, sin, interleaved)

    check_pass(program_of(function, SIZE // 2), RecognizeRope(), 1)


def test_the_first_channels_only() -> None:
    def function(x: Any, cos: Any, sin: Any) -> Any:
        cos, sin = (aten.unsqueeze.default(t, 2) for t in (cos, sin))
        return aten.cat.default([turn(part(x, 0, 4), cos, sin, 4), part(x, 4, SIZE)], -1)

    program = program_of(function, 4)
    check_pass(program, RecognizeRope(), 1)
    assert not [n for n in program.graph.nodes if n.target is aten.cat.default]


# ---- near misses


def misses(function: Any, size: int = SIZE) -> str:
    counts, reasons = fire(program_of(function, size), RecognizeRope())
    assert counts == [0]
    return "\n".join(reasons)


def test_another_value_is_rotated() -> None:
    def function(x: Any, cos: Any, sin: Any) -> Any:
        cos, sin = (aten.unsqueeze.default(t, 2) for t in (cos, sin))
        other = rotate_half(aten.neg.default(x))
        return aten.add.Tensor(aten.mul.Tensor(x, cos), aten.mul.Tensor(other, sin))

    assert "which 'mul" in misses(function)


def test_the_parts_are_no_halves() -> None:
    def function(x: Any, cos: Any, sin: Any) -> Any:
        cos, sin = (aten.unsqueeze.default(t, 2) for t in (cos, sin))
        other = aten.cat.default([aten.neg.default(part(x, 2, SIZE)), part(x, 0, 2)], -1)
        return aten.add.Tensor(aten.mul.Tensor(x, cos), aten.mul.Tensor(other, sin))

    assert "joins parts that are no halves" in misses(function)


def test_tables_that_differ_between_heads() -> None:
    def function(x: Any, cos: Any, sin: Any) -> Any:
        return turn(x, *(aten.reshape.default(t, [1, -1, HEADS, SIZE]) for t in (cos, sin)))

    assert "does not give each token 8 values" in misses(function, HEADS * SIZE)


def test_a_plus_for_a_minus() -> None:
    def function(x: Any, cos: Any, sin: Any) -> Any:
        cos, sin = (aten.unsqueeze.default(t, 2) for t in (cos, sin))
        other = aten.cat.default([part(x, 4, SIZE), part(x, 0, 4)], -1)
        return aten.add.Tensor(aten.mul.Tensor(x, cos), aten.mul.Tensor(other, sin))

    assert misses(function) == ""
