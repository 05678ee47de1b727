"""The rewriting machinery: matching, bindings, near misses, replacement and fuel."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from graphs import build_program, fire, rows

from graphwright.ir import Program, format_graph
from graphwright.passes.base import Pass, PassContext, Stage
from graphwright.passes.pattern import Match, Rewrite, apply_rewrites
from graphwright.passes.running import run_passes

aten = torch.ops.aten
add, mul, sub = aten.add.Tensor, aten.mul.Tensor, aten.sub.Tensor


def _multiply_add(x: Any, y: Any, z: Any) -> Any:
    return add(mul(x, y), z)


MULTIPLY_ADD = Rewrite(_multiply_add, lambda x, y, z: sub(mul(x, y), aten.neg.default(z)))


@dataclass(frozen=True)
class Apply(Pass):
    """Runs `rewrites`."""

    stage: ClassVar[Stage] = Stage.FUSE
    rewrites: tuple[Rewrite, ...] = ()

    def run(self, program: Program) -> int:
        return apply_rewrites(self, program, self.rewrites)


def _last_match(program: Program, rewrite: Rewrite) -> Match | str | None:
    return rewrite.match(program.output)


def test_bindings_are_nodes_and_constants_in_either_order() -> None:
    program = build_program(lambda x, y: add(y, mul(x, 3.0)), x=rows(4), y=rows(4))
    match = _last_match(program, MULTIPLY_ADD)
    assert isinstance(match, Match)
    assert (match["x"].name, match["y"], match["z"].name) == ("x", 3.0, "y")


def test_a_parameter_used_twice_is_one_value() -> None:
    square = Rewrite(lambda x: mul(x, x), lambda x: aten.square.default(x))
    assert _last_match(build_program(lambda x, y: mul(x, y), x=rows(4), y=rows(4)), square) is None
    assert isinstance(_last_match(build_program(lambda x: mul(x, x), x=rows(4)), square), Match)


def test_axes_and_defaults_do_not_depend_on_spelling() -> None:
    rewrite = Rewrite(lambda x: aten.mean.dim(x, [-1], True), lambda x: x)
    program = build_program(lambda x: aten.mean.dim(x, [2], keepdim=True, dtype=None), x=rows(4))
    assert isinstance(_last_match(program, rewrite), Match)
    program = build_program(lambda x: aten.mean.dim(x, [2]), x=rows(4))
    assert _last_match(program, rewrite) is None


def test_rewrites_in_place_and_cleans_up() -> None:
    program = build_program(
        lambda x, y, z: add(mul(x, y), z), x=rows(4), y=rows(4), z=torch.ones(4)
    )
    assert fire(program, Apply((MULTIPLY_ADD,))) == ([1], [])
    assert (
        format_graph(program)
        == """\
%x : f32[1, T, 4] = input
%y : f32[1, T, 4] = input
%z : f32[4] = weight
%mul_1 : f32[1, T, 4] = aten.mul.Tensor(%x, %y)
%neg_1 : f32[4] = aten.neg(%z)
%sub_1 : f32[1, T, 4] = aten.sub.Tensor(%mul_1, %neg_1)
return %sub_1
"""
    )


def test_an_intermediate_with_another_user_is_a_miss() -> None:
    def function(x: Any, y: Any) -> Any:
        product = mul(x, y)
        return sub(add(product, 1.0), product)

    program = build_program(function, x=rows(4), y=rows(4))
    text = format_graph(program)
    counts, misses = fire(program, Apply((MULTIPLY_ADD,)))
    assert counts == [0]
    assert misses == [
        "'add_tensor': the intermediate 'mul_tensor' is also used by 'sub_tensor'.",
    ]
    assert format_graph(program) == text


def test_a_returned_intermediate_may_have_other_users() -> None:
    def pattern(x: Any, y: Any) -> Any:
        product = mul(x, y)
        return add(product, 1), product

    def replacement(x: Any, y: Any) -> Any:
        product = mul(y, x)
        return aten.add.Scalar(product, 1), product

    def function(x: Any, y: Any) -> Any:
        product = mul(x, y)
        early = aten.neg.default(product)
        return sub(add(product, 1.0), early)

    program = build_program(function, x=rows(4), y=rows(4))
    assert fire(program, Apply((Rewrite(pattern, replacement),))) == ([1], [])
    assert (
        format_graph(program)
        == """\
%x : f32[1, T, 4] = input
%y : f32[1, T, 4] = input
%mul_1 : f32[1, T, 4] = aten.mul.Tensor(%y, %x)
%add_1 : f32[1, T, 4] = aten.add.Scalar(%mul_1, 1)
%neg_1 : f32[1, T, 4] = aten.neg(%mul_1)
%sub_1 : f32[1, T, 4] = aten.sub.Tensor(%add_1, %neg_1)
return %sub_1
"""
    )


def test_the_check_gives_the_reason() -> None:
    refusing = Rewrite(
        MULTIPLY_ADD.pattern, MULTIPLY_ADD.replacement, lambda m: f"z is {m['z']}, not 2."
    )
    program = build_program(lambda x, y: add(mul(x, y), 5), x=rows(4), y=rows(4))
    assert fire(program, Apply((refusing,))) == ([0], ["'add_tensor': z is 5, not 2."])


def test_fuel_stops_it() -> None:
    program = build_program(lambda x, y: add(mul(add(mul(x, y), y), x), x), x=rows(4), y=rows(4))
    run_passes(program, (Apply((MULTIPLY_ADD,)),), PassContext(fuel=1))
    assert program.log[-1].rewrites == 1
    assert str(program.output.target) == "aten.add.Tensor"
    required = dataclasses.replace(MULTIPLY_ADD, required=True)
    run_passes(program, (Apply((required,)),), PassContext(fuel=0))
    assert str(program.output.target) == "aten.sub.Tensor"
