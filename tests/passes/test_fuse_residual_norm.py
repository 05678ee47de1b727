"""fuse-residual-norm."""

from __future__ import annotations

from typing import Any

import torch
from graphs import build_program, check_pass, fire, rows

from graphwright.ir import format_graph
from graphwright.passes.fuse_residual_norm import FuseResidualNorm

aten, gw = torch.ops.aten, torch.ops.gw


def test_fires_when_the_sum_goes_on() -> None:
    def function(x: Any, y: Any, w: Any) -> Any:
        total = aten.add.Tensor(x, y)
        early = aten.neg.default(total)
        return aten.mul.Tensor(gw.rms_norm.default(total, w, eps=1e-6), early)

    program = build_program(function, x=rows(8), y=rows(8), w=torch.rand(8))
    check_pass(program, FuseResidualNorm(), 1)
    assert (
        format_graph(program)
        == """\
%x : f32[1, T, 8] = input
%y : f32[1, T, 8] = input
%w : f32[8] = weight
%add_rms_norm_1 : (f32[1, T, 8], f32[1, T, 8]) = gw.add_rms_norm(%x, %y, %w, eps=1e-06)
%getitem_1 : f32[1, T, 8] = getitem(%add_rms_norm_1, 1)
%getitem_2 : f32[1, T, 8] = getitem(%add_rms_norm_1, 0)
%neg_1 : f32[1, T, 8] = aten.neg(%getitem_2)
%mul_1 : f32[1, T, 8] = aten.mul.Tensor(%getitem_1, %neg_1)
return %mul_1
"""
    )


def test_fires_when_the_sum_ends_and_for_layer_norm() -> None:
    def function(x: Any, y: Any, w: Any, b: Any) -> Any:
        return gw.layer_norm.default(aten.add.Tensor(x, y), w, b, eps=1e-5)

    program = build_program(function, x=rows(8), y=rows(8), w=torch.rand(8), b=torch.rand(8))
    check_pass(program, FuseResidualNorm(), 1)


def test_two_norms_of_one_sum() -> None:
    def function(x: Any, y: Any, w: Any) -> Any:
        total = aten.add.Tensor(x, y)
        first = gw.rms_norm.default(total, w, eps=1e-5)
        return aten.mul.Tensor(first, gw.rms_norm.default(total, None, eps=1e-5))

    program = build_program(function, x=rows(8), y=rows(8), w=torch.rand(8))
    check_pass(program, FuseResidualNorm(), 1)


def test_leaves_a_broadcast_sum() -> None:
    def function(x: Any, y: Any) -> Any:
        return gw.rms_norm.default(aten.add.Tensor(x, y), None, eps=1e-5)

    counts, misses = fire(build_program(function, x=rows(8), y=torch.rand(8)), FuseResidualNorm())
    assert counts == [0]
    assert "the summand 'y' does not have the sum's shape" in misses[0]
    counts, misses = fire(build_program(lambda x: function(x, 1.0), x=rows(8)), FuseResidualNorm())
    assert counts == [0]
    assert "the summand '1.0' does not have the sum's shape" in misses[0]
