"""lift-reshapes."""

from __future__ import annotations

from typing import Any

import torch
from graphs import build_program, check_pass, fire, rows

from graphwright.ir import format_graph
from graphwright.passes.lift_reshapes import LiftReshapes

aten = torch.ops.aten
linear, reshape = aten.linear.default, aten.reshape.default


def test_flattened_products() -> None:
    def function(x: Any, w: Any, v: Any) -> Any:
        flat = reshape(x, [-1, 8])
        y = aten.relu.default(reshape(linear(flat, w), [1, -1, 6]))
        z = reshape(linear(reshape(y, [-1, 6]), v), [1, -1, 4, 2])
        return aten.add.Tensor(z, reshape(flat, [1, -1, 4, 2]))

    program = build_program(function, x=rows(8), w=torch.rand(6, 8), v=torch.rand(8, 6))
    check_pass(program, LiftReshapes(), 5, kind="exact")
    assert (
        format_graph(program)
        == """\
%x : f32[1, T, 8] = input
%w : f32[6, 8] = weight
%v : f32[8, 6] = weight
%linear_1 : f32[1, T, 6] = aten.linear(%x, %w)
%relu_1 : f32[1, T, 6] = aten.relu(%linear_1)
%linear_2 : f32[1, T, 8] = aten.linear(%relu_1, %v)
%reshape_1 : f32[1, T, 4, 2] = aten.reshape(%linear_2, [1, -1, 4, 2])
%reshape_2 : f32[1, T, 4, 2] = aten.reshape(%x, [1, -1, 4, 2])
%add_1 : f32[1, T, 4, 2] = aten.add.Tensor(%reshape_1, %reshape_2)
return %add_1
"""
    )


def test_leaves_reshapes_of_the_channels() -> None:
    program = build_program(
        lambda x, w: linear(reshape(x, [1, -1, 2, 4]), w), x=rows(8), w=torch.rand(6, 4)
    )
    counts, misses = fire(program, LiftReshapes())
    assert counts == [0]
    assert misses == ["'linear_default': 'reshape_default' changes the channels of 'x'."]
