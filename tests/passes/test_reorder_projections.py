"""reorder-projections."""

from __future__ import annotations

from typing import Any

import torch
from graphs import build_program, check_pass, fire, rows

from graphwright.ir import format_graph
from graphwright.passes.reorder_projections import ReorderProjections

aten = torch.ops.aten
linear, reshape = aten.linear.default, aten.reshape.default


def interleaved(x: Any, w: Any, b: Any) -> Any:
    """Two heads of [query, query, key] with 4 channels each."""
    heads = reshape(linear(x, w, b), [1, -1, 2, 3, 4])
    query = aten.slice.Tensor(heads, 3, 0, 2)
    key = aten.select.int(heads, -2, 2)
    return aten.mul.Tensor(query, aten.unsqueeze.default(key, 3))


def test_fires() -> None:
    program = build_program(interleaved, x=rows(8), w=torch.rand(24, 8), b=torch.rand(24))
    check_pass(program, ReorderProjections(), 1, kind="exact")
    assert (
        format_graph(program)
        == """\
%x : f32[1, T, 8] = input
%b_reordered : f32[24] = weight
%w_reordered : f32[24, 8] = weight
%linear_1 : f32[1, T, 24] = aten.linear(%x, %w_reordered, %b_reordered)
%slice_1 : f32[1, T, 16] = aten.slice.Tensor(%linear_1, -1, 0, 16)
%reshape_1 : f32[1, T, 2, 2, 4] = aten.reshape(%slice_1, [1, -1, 2, 2, 4])
%slice_2 : f32[1, T, 8] = aten.slice.Tensor(%linear_1, -1, 16, 24)
%reshape_2 : f32[1, T, 2, 4] = aten.reshape(%slice_2, [1, -1, 2, 4])
%unsqueeze_1 : f32[1, T, 2, 1, 4] = aten.unsqueeze(%reshape_2, 3)
%mul_1 : f32[1, T, 2, 2, 4] = aten.mul.Tensor(%reshape_1, %unsqueeze_1)
return %mul_1
"""
    )


def test_near_misses() -> None:
    def overlapping(x: Any, w: Any) -> Any:
        heads = reshape(linear(x, w), [1, -1, 2, 3, 4])
        return aten.add.Tensor(aten.slice.Tensor(heads, 3, 0, 2), aten.slice.Tensor(heads, 3, 1, 3))

    def whole(x: Any, w: Any) -> Any:
        y = linear(x, w)
        part = aten.select.int(reshape(y, [1, -1, 6, 4]), 3, 0)
        return aten.cat.default([y, part], -1)

    def contiguous(x: Any, w: Any) -> Any:
        return aten.slice.Tensor(linear(x, w), 2, 3, 9)

    for function, reasons in (
        (overlapping, ["'linear_default': its cuts overlap."]),
        (whole, ["'linear_default': 'cat_default' reads its whole result."]),
        (contiguous, []),
    ):
        program = build_program(function, x=rows(8), w=torch.rand(24, 8))
        assert fire(program, ReorderProjections()) == ([0], reasons)
