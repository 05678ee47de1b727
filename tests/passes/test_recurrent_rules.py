"""Spellings that recurrent models use: choices by constants, weights that come first, stacks of
weights, bounds by fills, writes of whole axes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from graphs import build_program, check_pass, fire, rows

from graphwright.ir import Program, format_graph
from graphwright.passes.base import Pass
from graphwright.passes.canonicalize_ops import CanonicalizeOps
from graphwright.passes.fold_constants import FoldConstants
from graphwright.passes.split_weight_stacks import SplitWeightStacks

aten, gw = torch.ops.aten, torch.ops.gw
TRUE, FALSE = torch.ones(4, dtype=torch.bool), torch.zeros(4, dtype=torch.bool)


def weight(*sizes: int) -> torch.Tensor:
    return torch.randn(sizes, generator=torch.Generator().manual_seed(0))


def body(program: Program) -> list[str]:
    """The printed calls."""
    lines = format_graph(program).splitlines()
    return [line.split(" = ")[1] for line in lines if not line.endswith(("input", "weight"))
            and " = " in line]  # fmt: skip


RULES: dict[str, tuple[Pass, int, Callable[..., Any], dict[str, Any], list[str]]] = {
    # by name: the pass, its rewrites, a program and its parameters, and the calls that are left
    "a choice that is always made": (
        FoldConstants(), 1, lambda x, y, c: aten.neg.default(aten.where.self(c, x, y)),
        {"x": rows(4), "y": rows(4), "c": TRUE}, ["aten.neg(%x)"],
    ),
    "a choice that is never made": (
        FoldConstants(), 1, lambda x, y, c: aten.neg.default(aten.where.self(c, x, y)),
        {"x": rows(4), "y": rows(4), "c": FALSE}, ["aten.neg(%y)"],
    ),
    "a bound by zeros": (
        CanonicalizeOps(), 1, lambda x: aten.minimum.default(x, aten.zeros_like.default(x)),
        {"x": rows(4)}, ["aten.clamp_max(%x, 0)"],
    ),
    "a fill that is bounded": (
        CanonicalizeOps(), 1,
        lambda x: aten.maximum.default(aten.full_like.default(x, 0.5), x),
        {"x": rows(4)}, ["aten.clamp_min(%x, 0.5)"],
    ),
    "a weight before columns": (
        CanonicalizeOps(), 1, lambda x, w: aten.matmul.default(w, x),
        {"x": rows(4, 5), "w": weight(3, 4)},
        [
            "aten.permute(%x, [0, 1, 3, 2])",
            "aten.linear(%permute_1, %w)",
            "aten.permute(%linear_1, [0, 1, 3, 2])",
        ],
    ),
    "a product and a sum in one": (
        CanonicalizeOps(), 1,
        lambda x, y, b: aten.baddbmm.default(b, x, y),
        {"x": rows(3, 4, batch=False), "y": rows(4, 5, batch=False), "b": weight(5)},
        ["aten.bmm(%x, %y)", "aten.add.Tensor(%bmm_1, %b)"],
    ),
    "all tokens are written": (
        CanonicalizeOps(), 1,
        lambda x, y: aten.neg.default(aten.slice_scatter.default(x, y, 1, 0, 2**63 - 1)),
        {"x": rows(4), "y": rows(4)}, ["aten.neg(%y)"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", RULES)
def test_rules(name: str) -> None:
    step, rewrites, function, parameters, calls = RULES[name]
    program = build_program(function, **parameters)
    counts, _ = fire(program.copy(), step)
    check_pass(program, step, counts[0])
    assert counts[0] >= rewrites
    assert body(program) == calls


NEAR: dict[str, tuple[Pass, Callable[..., Any], dict[str, Any], str]] = {
    # by name: the pass, a program and its parameters, and a call that stays
    "a choice of some": (
        FoldConstants(), lambda x, y, c: aten.where.self(c, x, y),
        {"x": rows(4), "y": rows(4), "c": torch.tensor([True, False, True, True])},
        "aten.where.self(%c, %x, %y)",
    ),
    "a choice that is broadcast": (
        FoldConstants(), lambda x, y, c: aten.where.self(c, x, y),
        {"x": rows(1), "y": rows(4), "c": TRUE}, "aten.where.self(%c, %x, %y)",
    ),
    "a bound that is computed": (
        CanonicalizeOps(), lambda x, y: aten.minimum.default(x, y),
        {"x": rows(4), "y": rows(4)}, "aten.minimum(%x, %y)",
    ),
    "a bound that makes it wider": (
        CanonicalizeOps(),
        lambda x, y: aten.minimum.default(x, aten.zeros_like.default(y)),
        {"x": rows(1), "y": rows(4)}, "aten.minimum",
    ),
    "a product of two values": (
        CanonicalizeOps(), lambda x, y: aten.matmul.default(x, y),
        {"x": rows(3, 4), "y": rows(4, 5)}, "aten.matmul(%x, %y)",
    ),
    "scaled before the sum": (
        CanonicalizeOps(), lambda x, y, b: aten.baddbmm.default(b, x, y, beta=2),
        {"x": rows(3, 4, batch=False), "y": rows(4, 5, batch=False), "b": weight(5)},
        "aten.baddbmm(%b, %x, %y, beta=2)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NEAR)
def test_near_misses(name: str) -> None:
    step, function, parameters, call = NEAR[name]
    program = build_program(function, **parameters)
    fire(program, step)
    assert any(each.startswith(call) for each in body(program)), body(program)


# ---- split-weight-stacks


def blocks(x: Any, w: Any) -> Any:
    """Block-diagonal products: heads of channels, each with a matrix of its own."""
    heads = aten.permute.default(aten.reshape.default(x, [-1, 3, 4]), [1, 0, 2])
    return aten.permute.default(aten.bmm.default(heads, w), [1, 0, 2])


def test_each_matrix_of_a_stack_gets_its_product() -> None:
    program = build_program(blocks, x=rows(12, batch=False), w=weight(3, 4, 5))
    check_pass(program, SplitWeightStacks(), 1)
    calls = body(program)
    assert sum(call.startswith("aten.linear(") for call in calls) == 3
    assert not any("bmm" in call for call in calls)
    matrices = [program.weights[name] for name in program.weights if name != "w"]
    assert [tuple(matrix.shape) for matrix in matrices] == [(5, 4)] * 3


def columns(x: Any, w: Any) -> Any:
    """The same of a stack that comes first, over columns: [N, 1, m, k] · [N, T, k, n]."""
    heads = aten.permute.default(x, [1, 0, 2, 3])
    return aten.permute.default(aten.matmul.default(w, heads),
                                [1, 0, 2, 3])  # fmt: skip


def test_a_stack_that_comes_first() -> None:
    program = build_program(columns, x=rows(3, 4, 2, batch=False), w=weight(3, 1, 5, 4))
    check_pass(program, SplitWeightStacks(), 1)
    calls = body(program)
    assert sum(call.startswith("aten.linear(") for call in calls) == 3
    assert not any("matmul" in call for call in calls)


def of_many(x: Any, w: Any) -> Any:
    heads = aten.permute.default(aten.reshape.default(x, [-1, 65, 4]), [1, 0, 2])
    return aten.bmm.default(heads, w)


STACKS: dict[str, tuple[Callable[..., Any], dict[str, Any], list[str]]] = {
    "of many": (
        of_many, {"x": rows(260, batch=False), "w": weight(65, 4, 5)},
        ["the stack 'w' has 65 matrices, more than 64."],
    ),
    "of none": (lambda x, w: aten.linear.default(x, w), {"x": rows(4), "w": weight(5, 4)}, []),
    "of values": (
        lambda x, y: aten.bmm.default(x, y),
        {"x": rows(4, 3, batch=False), "y": rows(3, 5, batch=False)}, [],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", STACKS)
def test_stacks_that_are_left(name: str) -> None:
    function, parameters, reasons = STACKS[name]
    program = build_program(function, **parameters)
    before = format_graph(program)
    assert fire(program, SplitWeightStacks()) == ([0], reasons)
    assert format_graph(program) == before
