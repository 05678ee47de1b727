"""PlanMemory and the verifier that did not make the plan."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from graphs import build_program, check_pass, fire, rows
from hypothesis import given, settings
from hypothesis import strategies as st

from graphwright.ir import Level, PassError, Program, format_graph
from graphwright.ir.memory import Buffer, MemoryPlan, align, memory_table
from graphwright.passes.plan_memory import PlanMemory, plan_entry
from graphwright.passes.verify_plan import verify_plan

aten, gw = torch.ops.aten, torch.ops.gw


def small() -> Program:
    """Norm, merged gate and up, gated activation, down, residual, head."""

    def model(x: Any, norm: Any, wide: Any, narrow: Any, head: Any) -> Any:
        y = gw.rms_norm.default(x, norm, eps=1e-6)
        merged = gw.linear.default(y, wide)
        gate = aten.slice.Tensor(merged, 2, 0, 32)
        up = aten.slice.Tensor(merged, 2, 32, 64)
        z = gw.gated_act.default(gate, up, activation="silu")
        total = gw.add_rms_norm.default(gw.linear.default(z, narrow), x, norm, eps=1e-6)
        return gw.linear.default(total[1], head, None, total[0])

    return build_program(
        model,
        level=Level.QUANTIZED,
        x=rows(16),
        norm=torch.ones(16),
        wide=torch.randn(64, 16),
        narrow=torch.randn(16, 32),
        head=torch.randn(16, 16),
    )


def test_plans_both_entries_once() -> None:
    program = small()
    text = format_graph(program)
    check_pass(program, PlanMemory(chunk=100), rewrites=2)
    assert format_graph(program) == text
    assert program.level is Level.PLANNED
    assert program.copy().plans == program.plans
    assert [program.plans[name].max_tokens for name in ("decode", "prefill")] == [8, 100]


def test_golden_plan() -> None:
    program = small()
    fire(program, PlanMemory())
    assert memory_table(program.plans["decode"]) == (
        "decode: 3,072 bytes of arena for 8 tokens; 6 buffers of 5,120 bytes\n"
        "buffer                  offset  bytes  steps\n"
        "rms_norm_default         2,048    512    0-1\n"
        "linear_default               0  2,048    1-2\n"
        "gated_act_default        2,048  1,024    2-3\n"
        "linear_default_1             0    512    3-4\n"
        "add_rms_norm_default.0     512    512    4-5\n"
        "add_rms_norm_default.1   1,024    512    4-5\n"
    )


def test_steps_that_read_the_same_rows_share_their_int8_form() -> None:
    def model(x: Any, a: Any, a_scale: Any, b: Any, b_scale: Any) -> Any:
        y = gw.rms_norm.default(x, None, eps=1e-6)
        one = gw.quantized_linear.default(y, a, a_scale, scheme="w8")
        two = gw.quantized_linear.default(y, b, b_scale, None, one, scheme="w8g32")
        return gw.quantized_linear.default(y, a, a_scale, None, two, scheme="w8")

    weight = torch.randint(-127, 127, (64, 64), dtype=torch.int8)
    program = build_program(
        model,
        level=Level.QUANTIZED,
        x=rows(64),
        a=weight,
        a_scale=torch.rand(64, 1),
        b=weight.clone(),
        b_scale=torch.rand(64, 2),
    )
    fire(program, PlanMemory())
    buffers = {b.name: (b.bytes, b.first, b.last) for b in program.plans["decode"].buffers}
    assert buffers["rms_norm_default.int8g1"] == (8 * (64 + 64), 1, 3)
    assert buffers["rms_norm_default.int8g1.scale"] == (8 * 4, 1, 3)
    assert buffers["rms_norm_default.int8g2"] == (8 * (64 + 64), 2, 2)


def refused(function: Any, **parameters: Any) -> str:
    program = build_program(function, level=Level.QUANTIZED, **parameters)
    with pytest.raises(PassError) as error:
        fire(program, PlanMemory())
    return str(error.value)


def test_refuses_what_moves_memory() -> None:
    def moves(x: Any, w: Any) -> Any:
        y = gw.linear.default(x, w)
        return gw.linear.default(aten.slice.Tensor(y, 2, 0, 8, 2), w)

    message = refused(moves, x=rows(4), w=torch.randn(8, 4))
    assert "slice_tensor' (aten.slice.Tensor" in message and "belongs into a region" in message
    message = refused(lambda x: aten.reshape.default(x, [-1]), x=rows(4))
    assert "moves memory" in message


def test_refuses_results_that_are_not_a_step() -> None:
    assert "not computed by any step" in refused(lambda x: x, x=rows(4))

    def part(x: Any, w: Any) -> Any:
        return aten.slice.Tensor(gw.linear.default(x, w), 2, 0, 8)

    assert "a part of 'linear_default'" in refused(part, x=rows(4), w=torch.randn(16, 4))


def changed(plan: MemoryPlan, name: str, **values: Any) -> MemoryPlan:
    buffers = tuple(dataclasses.replace(b, **values) if b.name == name else b for b in plan.buffers)
    end = max(b.offset + b.bytes for b in buffers)
    return dataclasses.replace(plan, buffers=buffers, arena_bytes=-(-end // 64) * 64)


def test_verifier_finds_every_kind_of_mistake() -> None:
    graph = small().graph
    plan = plan_entry(graph, "decode", 8)
    verify_plan(graph, plan)
    mistakes = [
        (changed(plan, "gated_act_default", offset=0), "over 'linear_default' at 0..2048"),
        (changed(plan, "linear_default", offset=32), "starts at byte 32, no multiple of 64"),
        (changed(plan, "linear_default", bytes=1024), "writes 2048 bytes into 'linear_default'"),
        (dataclasses.replace(plan, arena_bytes=1024), "of an arena of 1024"),
        (dataclasses.replace(plan, arena_bytes=8192), "the arena has 8192 bytes, 3072 are used"),
        (dataclasses.replace(plan, buffers=plan.buffers[1:]), "has no place"),
        (dataclasses.replace(plan, buffers=plan.buffers * 2), "places a buffer twice"),
        (changed(plan, "add_rms_norm_default.0", offset=1024), "also its own"),
        (
            dataclasses.replace(plan, buffers=(*plan.buffers, Buffer("spare", 0, 64, 0, 9))),
            "['spare'], which no step writes",
        ),
    ]
    for wrong, words in mistakes:
        with pytest.raises(PassError) as error:
            verify_plan(graph, wrong)
        assert words in str(error.value)


def test_verifier_finds_a_value_overwritten_while_it_is_needed() -> None:
    def model(x: Any, w: Any) -> Any:
        kept = gw.linear.default(x, w)
        other = gw.linear.default(gw.linear.default(x, w), w)
        return gw.linear.default(other, w, None, kept)

    program = build_program(model, level=Level.QUANTIZED, x=rows(16), w=torch.randn(16, 16))
    plan = plan_entry(program.graph, "decode", 8)
    kept = next(b for b in plan.buffers if b.name == "linear_default")
    wrong = changed(plan, "linear_default_1", offset=kept.offset)
    with pytest.raises(PassError, match="'linear_default_1' was written over it"):
        verify_plan(program.graph, wrong)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 40)), max_size=12))
def test_any_graph_of_linears_gets_a_valid_plan(shape: list[tuple[int, int]]) -> None:
    """Linears of drawn widths over drawn earlier values."""
    widths = [16]
    weights: dict[str, torch.Tensor] = {}
    for number, (source, width) in enumerate(shape):
        weights[f"w{number}"] = torch.zeros(width, widths[source % len(widths)])
        widths.append(width)
    weights["last"] = torch.zeros(8, widths[-1])

    def model(x: Any, **given: Any) -> Any:
        values = [x]
        for number, (source, _) in enumerate(shape):
            values.append(gw.linear.default(values[source % len(values)], given[f"w{number}"]))
        return gw.linear.default(values[-1], given["last"])

    program = _program_of(model, weights)
    program.clean()
    for tokens in (1, 8, 33):
        plan = plan_entry(program.graph, "prefill", tokens)
        verify_plan(program.graph, plan)
        floor = max((_live_bytes(plan, step) for step in range(len(shape) + 1)), default=0)
        assert floor <= plan.arena_bytes <= 2 * floor


def _live_bytes(plan: MemoryPlan, step: int) -> int:
    return sum(align(b.bytes) for b in plan.buffers if b.first <= step <= b.last)


def _program_of(model: Any, weights: dict[str, torch.Tensor]) -> Program:
    names = ", ".join(["x", *weights])
    keywords = ", ".join(f"{name}={name}" for name in weights)
    function = eval(f"lambda {names}: model(x, {keywords})", {"model": model})
    return build_program(function, level=Level.QUANTIZED, x=rows(16), **weights)
