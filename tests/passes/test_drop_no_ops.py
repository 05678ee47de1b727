"""drop-no-ops."""

from __future__ import annotations

from typing import Any

import torch
from graphs import build_program, check_pass, fire, rows

from graphwright.ir import Level, format_graph
from graphwright.passes.drop_no_ops import DropNoOps

aten = torch.ops.aten


def litter(x: Any) -> Any:
    aten._assert_tensor_metadata.default(x, None, None, torch.float32)
    x = aten.alias.default(aten.clone.default(x))
    x = aten.mul.Tensor(aten.add.Tensor(x, 0), 1.0)
    x = aten.slice.Tensor(x, 1, 0, 2**63 - 1)
    x = aten.expand.default(aten._to_copy.default(x, dtype=torch.float32), [1, -1, 6])
    return aten.dropout.default(aten.neg.default(x), 0.1, False)


def test_everything_that_changes_nothing_goes() -> None:
    program = build_program(litter, Level.CAPTURED, x=rows(6))
    check_pass(program, DropNoOps(), 9, "exact")
    expected = """\
%x : f32[1, T, 6] = input
%neg_1 : f32[1, T, 6] = aten.neg(%x)
return %neg_1
"""
    assert format_graph(program) == expected


def test_a_view_of_a_dropped_copy_becomes_a_reshape() -> None:
    def function(x: Any) -> Any:
        turned = aten.clone.default(
            aten.permute.default(x, [0, 1, 3, 2]), memory_format=torch.contiguous_format
        )
        return aten.view.default(turned, [1, -1, 12])

    program = build_program(function, Level.CAPTURED, x=rows(3, 4))
    check_pass(program, DropNoOps(), 2, "exact")
    assert program.output.target is aten.reshape.default


def test_what_changes_something_stays() -> None:
    def function(x: Any, w: Any) -> Any:
        x = aten.add.Tensor(x, 1)
        x = aten.sub.Tensor(x, 0.5)
        x = aten.mul.Tensor(x, 0)
        x = aten.div.Tensor(x, w)
        x = aten._to_copy.default(x, dtype=torch.float64)
        x = aten.slice.Tensor(x, 2, 1, 6)
        x = aten.expand.default(x, [2, -1, -1])
        x = aten.div.Tensor_mode(x, 1, rounding_mode="floor")
        return aten.dropout.default(x, 0.0, True)

    program = build_program(function, Level.CAPTURED, x=rows(6), w=torch.ones(6))
    assert fire(program, DropNoOps())[0] == [1]  # the dropout of nothing
    assert len(program.graph.nodes) == 11


def test_a_zero_that_changes_the_dtype_stays() -> None:
    program = build_program(
        lambda x: aten.add.Tensor(x, 0.0), Level.CAPTURED, x=rows(2, dtype=torch.int64)
    )
    assert fire(program, DropNoOps())[0] == [0]
