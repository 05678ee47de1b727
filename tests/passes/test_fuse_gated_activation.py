"""fuse-gated-activation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from graphs import build_program, check_pass, fire, rows

from graphwright.ir import format_graph
from graphwright.passes.activation_patterns import ACTIVATION_PATTERNS
from graphwright.passes.fuse_gated_activation import FuseGatedActivation

aten = torch.ops.aten
mul = aten.mul.Tensor


@pytest.mark.parametrize(("name", "activation"), ACTIVATION_PATTERNS)
def test_every_spelling(name: str, activation: Any) -> None:
    for function in (
        lambda gate, up: mul(activation(gate), up),
        lambda gate, up: mul(up, activation(gate)),
    ):
        program = build_program(function, gate=rows(6), up=rows(6))
        check_pass(program, FuseGatedActivation(), 1)
        assert (
            format_graph(program)
            == f"""\
%gate : f32[1, T, 6] = input
%up : f32[1, T, 6] = input
%gated_act_1 : f32[1, T, 6] = gw.gated_act(%gate, %up, activation="{name}")
return %gated_act_1
"""
        )


def test_leaves_a_shared_activation() -> None:
    def function(gate: Any, up: Any) -> Any:
        active = aten.silu.default(gate)
        return aten.add.Tensor(mul(active, up), active)

    counts, misses = fire(build_program(function, gate=rows(6), up=rows(6)), FuseGatedActivation())
    assert counts == [0]
    assert misses == ["'mul_tensor': the intermediate 'silu_default' is also used by 'add_tensor'."]


def test_leaves_numbers_broadcasts_and_the_plain_activation() -> None:
    for function, reason in (
        (lambda x, y: mul(aten.tanh.default(x), 30.0), "the other factor, 30.0, is a number."),
        (lambda x, y: mul(aten.silu.default(x), y), "the gate is [1, "),
        (lambda x, y: mul(aten.sigmoid.default(x), x), "'x' is its own gate."),
    ):
        program = build_program(function, x=rows(6), y=torch.rand(6))
        counts, misses = fire(program, FuseGatedActivation())
        assert counts == [0]
        assert reason in misses[0]


def test_leaves_parts_that_are_scattered_over_the_row() -> None:
    """[T, S, 2F] in two halves: a region reads both where they are, the op would need copies."""

    def function(x: Any) -> Any:
        gate, up = aten.slice.Tensor(x, 2, 0, 6), aten.slice.Tensor(x, 2, 6, 12)
        return mul(aten.silu.default(gate), up)

    for rows_of, count in ((rows(3, 12, batch=False), 0), (rows(1, 12, batch=False), 1)):
        counts, misses = fire(build_program(function, x=rows_of), FuseGatedActivation())
        assert counts == [count]
        assert count or "is scattered over its row, so it would have to be copied." in misses[0]
