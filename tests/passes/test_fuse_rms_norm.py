"""fuse-rms-norm."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from graphs import build_program, check_pass, fire, rows
from hypothesis import given, settings
from hypothesis import strategies as st

from graphwright.ir import format_graph
from graphwright.passes.fuse_rms_norm import SQUARES, FuseRmsNorm, inverse_roots

aten = torch.ops.aten
mul = aten.mul.Tensor


def mean_square(x: Any, eps: float = 1e-6) -> Any:
    return aten.add.Tensor(aten.mean.dim(aten.pow.Tensor_Scalar(x, 2), [-1], True), eps)


def norm(x: Any) -> Any:
    return mul(x, aten.rsqrt.default(mean_square(x)))


def test_fires_with_the_weight_on_either_side() -> None:
    weight = torch.rand(16)
    for function in (lambda x, w: mul(norm(x), w), lambda x, w: mul(w, norm(x))):
        program = build_program(function, x=rows(16), w=weight)
        check_pass(program, FuseRmsNorm(), 2)
        assert (
            format_graph(program)
            == """\
%x : f32[1, T, 16] = input
%w : f32[16] = weight
%rms_norm_1 : f32[1, T, 16] = gw.rms_norm(%x, %w, eps=1e-06)
return %rms_norm_1
"""
        )


@settings(max_examples=8, deadline=None)
@given(sizes=st.lists(st.integers(1, 5), min_size=1, max_size=2))
def test_any_shape_with_a_row_for_each_token(sizes: list[int]) -> None:
    check_pass(build_program(norm, x=rows(*sizes)), FuseRmsNorm(), 1)


@pytest.mark.parametrize("square", SQUARES)
@pytest.mark.parametrize("divide", inverse_roots())
def test_every_spelling(square: Any, divide: Any) -> None:
    def function(x: Any) -> Any:
        return divide(x, aten.add.Tensor(aten.mean.dim(square(x), [2], True), 1e-5))

    program = build_program(function, x=rows(8))
    check_pass(program, FuseRmsNorm(), 1)
    assert program.output.target is torch.ops.gw.rms_norm.default


@pytest.mark.parametrize("eps", (None, 1e-3))
def test_the_aten_op(eps: float | None) -> None:
    program = build_program(
        lambda x, w: aten.rms_norm.default(x, [8], w, eps), x=rows(8), w=torch.rand(8)
    )
    check_pass(program, FuseRmsNorm(), 1)


def test_leaves_an_intermediate_with_other_users() -> None:
    def function(x: Any) -> Any:
        variance = mean_square(x)
        return aten.add.Tensor(mul(x, aten.rsqrt.default(variance)), variance)

    counts, misses = fire(build_program(function, x=rows(8)), FuseRmsNorm())
    assert counts == [0]
    assert "also used by 'add_tensor_1'" in misses[0]


def test_leaves_rows_that_are_not_tokens() -> None:
    def function(x: Any) -> Any:
        heads = aten.permute.default(x, [0, 2, 1, 3])
        return aten.permute.default(norm(heads), [0, 2, 1, 3])

    counts, misses = fire(build_program(function, x=rows(2, 8)), FuseRmsNorm())
    assert counts == [0]
    assert "has no row for each token" in misses[0]


def test_leaves_a_computed_eps_and_a_factor_that_is_no_weight() -> None:
    def computed(x: Any, y: Any) -> Any:
        total = aten.add.Tensor(aten.mean.dim(mul(x, x), [-1], True), y)
        return mul(x, aten.rsqrt.default(total))

    counts, misses = fire(build_program(computed, x=rows(8), y=rows(1)), FuseRmsNorm())
    assert (counts, misses) == ([0], ["'mul_tensor_1': eps is not a number but y."])
    program = build_program(lambda x, y: mul(norm(x), y), x=rows(8), y=rows(8))
    counts, misses = fire(program, FuseRmsNorm())
    assert counts == [1]
    assert misses == ["'mul_tensor_1': the factor 'y' is not one weight for each channel."]
