"""form-regions: what is stored, what is grouped, what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from graphs import build_program, check_pass, fire, random_inputs, rows
from hypothesis import given, settings
from hypothesis import strategies as st

from graphwright.ir import Level, PassError, Program, format_graph
from graphwright.ir.interpreter import run_program
from graphwright.ir.layout import is_view, row_axis
from graphwright.ir.op import is_gw_op
from graphwright.ir.tolerance import check_close
from graphwright.passes.form_regions import FormRegions

aten, gw = torch.ops.aten, torch.ops.gw
add, mul = aten.add.Tensor, aten.mul.Tensor


def regions(program: Program) -> list[str]:
    """The text of each region's body."""
    found: list[str] = []
    inside = False
    for line in format_graph(program).splitlines():
        starts = line.startswith("  | ")
        if starts:
            found[-1:] = [found[-1] + line] if inside else [*found[-1:], line]
        inside = starts
    return found


def test_a_chain_between_gw_ops() -> None:
    def function(x: Any, w: Any) -> Any:
        y = gw.linear.default(x, w)
        y = mul(aten.tanh.default(aten.div.Tensor(y, 30.0)), 30.0)
        return gw.linear.default(y, w)

    program = build_program(function, x=rows(8), w=torch.randn(8, 8))
    check_pass(program, FormRegions(), 1)
    assert program.level is Level.FUSED
    assert (
        format_graph(program)
        == """\
%x : f32[1, T, 8] = input
%w : f32[8, 8] = weight
%linear_1 : f32[1, T, 8] = gw.linear(%x, %w)
%region_1 : f32[1, T, 8] = region(%linear_1)
  | %input_0 : f32[1, T, 8] = input
  | %div_1 : f32[1, T, 8] = aten.div.Tensor(%input_0, 30.0)
  | %tanh_1 : f32[1, T, 8] = aten.tanh(%div_1)
  | %mul_1 : f32[1, T, 8] = aten.mul.Tensor(%tanh_1, 30.0)
  | return %mul_1
%linear_2 : f32[1, T, 8] = gw.linear(%region_1, %w)
return %linear_2
"""
    )


def test_tables_of_one_depth_are_one_region_and_views_stay_outside() -> None:
    def function(x: Any, positions: Any, frequency: Any) -> Any:
        angle = mul(aten._to_copy.default(positions, dtype=torch.float32), frequency)
        angle = aten.cat.default([angle, angle], -1)
        heads = aten.reshape.default(x, [-1, 2, 8])
        cos, sin = (
            f(aten.reshape.default(angle, [-1, 8])) for f in (aten.cos.default, aten.sin.default)
        )
        turned = gw.rope.default(heads, cos, sin, interleaved=False)
        return aten.slice.Tensor(aten.reshape.default(turned, [1, -1, 16]), 2, 0, 16)

    program = build_program(
        function, x=rows(16), positions=rows(1, dtype=torch.int64), frequency=torch.rand(4)
    )
    check_pass(program, FormRegions(), 1)
    assert (
        format_graph(program)
        == """\
%x : f32[1, T, 16] = input
%positions : i64[1, T, 1] = input
%frequency : f32[4] = weight
%reshape_1 : f32[T, 2, 8] = aten.reshape(%x, [-1, 2, 8])
%region_1 : (f32[T, 8], f32[T, 8]) = region(%positions, %frequency)
  | %input_0 : i64[1, T, 1] = input
  | %input_1 : f32[4] = input
  | %_to_copy_1 : f32[1, T, 1] = aten._to_copy(%input_0, dtype=float32)
  | %mul_1 : f32[1, T, 4] = aten.mul.Tensor(%_to_copy_1, %input_1)
  | %cat_1 : f32[1, T, 8] = aten.cat([%mul_1, %mul_1], -1)
  | %reshape_1 : f32[T, 8] = aten.reshape(%cat_1, [-1, 8])
  | %cos_1 : f32[T, 8] = aten.cos(%reshape_1)
  | %reshape_2 : f32[T, 8] = aten.reshape(%cat_1, [-1, 8])
  | %sin_1 : f32[T, 8] = aten.sin(%reshape_2)
  | return (%cos_1, %sin_1)
%getitem_1 : f32[T, 8] = getitem(%region_1, 0)
%getitem_2 : f32[T, 8] = getitem(%region_1, 1)
%rope_1 : f32[T, 2, 8] = gw.rope(%reshape_1, %getitem_1, %getitem_2, interleaved=False)
%reshape_2 : f32[1, T, 16] = aten.reshape(%rope_1, [1, -1, 16])
%slice_1 : f32[1, T, 16] = aten.slice.Tensor(%reshape_2, 2, 0, 16)
return %slice_1
"""
    )


def test_reductions_are_cut() -> None:
    """softmax by hand: the maximum and the sum are stored, and so is what the sum reads."""

    def function(x: Any) -> Any:
        e = aten.exp.default(aten.sub.Tensor(x, aten.amax.default(x, [-1], True)))
        return aten.div.Tensor(e, aten.sum.dim_IntList(e, [-1], True))

    program = build_program(function, x=rows(8))
    check_pass(program, FormRegions(), 4)
    assert [body.split(" = ")[-1].split("(")[0] for body in regions(program)] == [
        "aten.amax", "aten.exp", "aten.sum.dim_IntList", "aten.div.Tensor",
    ]  # fmt: skip


def test_permuted_values_are_stored_by_rows() -> None:
    def function(x: Any) -> Any:
        heads = aten.permute.default(x, [0, 2, 1, 3])
        mean = aten.mean.dim(heads, [-1], True)
        summed = aten.sum.dim_IntList(heads, [1])
        y = aten.permute.default(aten.sub.Tensor(heads, mean), [0, 2, 1, 3])
        return aten.mul.Tensor(y, aten.unsqueeze.default(summed, 2))

    program = build_program(function, x=rows(3, 8))
    check_pass(program, FormRegions(), 2)
    for node in program.graph.nodes:
        if node.op == "call_module":
            values = node.meta["val"]
            for value in values if isinstance(values, tuple) else (values,):
                assert row_axis(value) is not None


def test_gathers_from_weights_and_sizes() -> None:
    def function(x: Any, ids: Any, table: Any) -> Any:
        size = aten.sym_size.int(x, 1)
        rows_of = aten.index.Tensor(table, [aten.add.Tensor(ids, 1)])
        wide = aten.expand.default(aten.unsqueeze.default(rows_of, 2), [1, size, 3, 4])
        return add(aten.reshape.default(wide, [1, size, 12]), x)

    program = build_program(
        function, x=rows(12), ids=rows(dtype=torch.int64), table=torch.rand(10, 4)
    )
    check_pass(program, FormRegions(), 1)
    assert "sym_size" not in format_graph(program)


def test_equal_regions_have_equal_text() -> None:
    def function(x: Any, w: Any) -> Any:
        for _ in range(3):
            x = gw.linear.default(add(mul(x, 2.0), aten.neg.default(x)), w)
        return x

    program = build_program(function, x=rows(8), w=torch.eye(8))
    check_pass(program, FormRegions(), 3)
    bodies = regions(program)
    assert len(bodies) == 3
    assert len(set(bodies)) == 1


def test_refusals_name_the_node() -> None:
    cases = (
        (lambda x: aten.topk.default(x, 2)[0], "'topk_default' is aten.topk.default, which no"),
        (lambda x: aten.matmul.default(x, aten.permute.default(x, [0, 2, 1])), "aten.matmul"),
        (lambda x: aten.sum.dim_IntList(x, [1]), "over the tokens of"),
        (lambda x: aten.sum.dim_IntList(x, [0, 2]), "reduces the axes [0, 2]"),
        (
            lambda x: aten.permute.default(aten.neg.default(x), [0, 2, 1]),
            "has the tokens on axis 2",
        ),
    )
    for function, reason in cases:
        program = build_program(function, level=Level.CAPTURED, x=rows(8))
        with pytest.raises(PassError, match="cannot be lowered") as error:
            fire(program, FormRegions())
        assert reason in str(error.value)


UNARY = (aten.neg.default, aten.tanh.default, aten.exp.default, aten.abs.default)


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_random_graphs_stay_acyclic_and_equal(data: Any) -> None:
    """Random mixes of pointwise, reduction and gw ops: the same numbers, and every op covered."""
    steps = data.draw(st.lists(st.tuples(*[st.integers(0, 9)] * 3), min_size=2, max_size=9))

    def function(x: Any, w: Any) -> Any:
        values = [x]
        for kind, first, second in steps:
            a, b = values[first % len(values)], values[second % len(values)]
            if kind < 4:
                values.append(UNARY[kind](aten.clamp.default(a, -2.0, 2.0)))
            elif kind < 6:
                values.append(add(a, b))
            elif kind < 8:
                values.append(aten.sub.Tensor(a, aten.mean.dim(b, [-1], True)))
            else:
                values.append(gw.linear.default(a, w))
        return add(values[-1], values[len(values) // 2])

    program = build_program(function, x=rows(4), w=torch.eye(4) * 0.5)
    before = program.copy()
    fire(program, FormRegions())
    inputs = random_inputs(before, 3)
    check_close(run_program(program, inputs), run_program(before, inputs))
    for node in program.graph.nodes:
        if node.op == "call_function":
            assert is_gw_op(node.target) or is_view(node) or "getitem" in str(node.target)
