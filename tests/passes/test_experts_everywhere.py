"""recognize-experts, for experts that all tokens pass through, most of them scaled by zero."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
from graphs import build_program, check_pass, fire, rows

from graphwright.ir import Program, format_graph
from graphwright.passes.canonicalize_ops import CanonicalizeOps
from graphwright.passes.recognize_experts import RecognizeExperts

aten, gw = torch.ops.aten, torch.ops.gw
mul, bmm = aten.mul.Tensor, aten.bmm.default
EXPERTS, WIDTH, INNER, SLOTS = 5, 6, 10, 2
NEVER = float("-inf")
Scores = Callable[[Any, Any], Any]


def scattered(values: Any, places: Any) -> Any:
    """sigmoid of the chosen scores, zero for all others."""
    hit = [aten.eq.Tensor(aten.slice.Tensor(places, 1, i, i + 1), PLACES[0]) for i in range(SLOTS)]
    score = aten.where.ScalarOther(hit[0], aten.slice.Tensor(values, 1, 0, 1), NEVER)
    score = aten.where.self(hit[1], aten.slice.Tensor(values, 1, 1, 2), score)
    return aten.sigmoid.default(score)


PLACES: list[Any] = []  # the weight 0, 1, ... of the program that is being built


def behind(places: Any) -> Any:
    """One for the places behind the first chosen one, else zero."""
    hit = aten.ge.Tensor(PLACES[0], aten.slice.Tensor(places, 1, 0, 1))
    return aten._to_copy.default(hit, dtype=torch.float32)


def repeated(x: Any, scores: Any) -> Any:
    """Rows E·T, scaled expert by expert, as [E, T, WIDTH]."""
    turned = aten.reshape.default(aten.permute.default(scores, [1, 0]), [-1, 1])
    wide = mul(aten.repeat.default(x, [EXPERTS, 1]), turned)
    return aten.reshape.default(wide, [EXPERTS, -1, WIDTH])


def expanded(x: Any, scores: Any) -> Any:
    """[E, T, WIDTH] by a broadcast."""
    wide = aten.expand.default(aten.unsqueeze.default(x, 0), [EXPERTS, -1, -1])
    return mul(wide, aten.unsqueeze.default(aten.permute.default(scores, [1, 0]), 2))


def gated(h: Any, up: Any, down: Any) -> Any:
    both = bmm(h, up)
    gate = aten.silu.default(aten.slice.Tensor(both, 2, 0, INNER))
    return bmm(mul(gate, aten.slice.Tensor(both, 2, INNER, 2 * INNER)), down)


def build(function: Callable[..., Any]) -> Program:
    """`function(x, values, places, up, down)` for the SLOTS largest of the router's values."""

    def routed(tokens: Any, x: Any, router: Any, numbers: Any, up: Any, down: Any) -> Any:
        pair = gw.top_k.default(router, k=SLOTS)
        PLACES[:] = [numbers]
        return function(x, operator.getitem(pair, 0), operator.getitem(pair, 1), up, down)

    assert len(inspect.signature(function).parameters) == 5
    torch.manual_seed(0)
    return build_program(
        routed,
        tokens=rows(dtype=torch.int64, batch=False),
        x=rows(WIDTH, batch=False),
        router=rows(EXPERTS, batch=False),
        numbers=torch.arange(EXPERTS),
        up=torch.randn(EXPERTS, WIDTH, 2 * INNER),
        down=torch.randn(EXPERTS, INNER, WIDTH),
    )


def summed(y: Any) -> Any:
    return aten.sum.dim_IntList(y, [0])


def block(x: Any, values: Any, places: Any, up: Any, down: Any) -> Any:
    return summed(gated(repeated(x, scattered(values, places)), up, down))


SPELLINGS: dict[str, Callable[..., Any]] = {
    "repeated rows": block,
    "a broadcast": lambda x, values, places, up, down: summed(
        gated(expanded(x, scattered(values, places)), up, down)
    ),
    "scores at the end": lambda x, values, places, up, down: summed(
        mul(
            gated(aten.expand.default(aten.unsqueeze.default(x, 0), [EXPERTS, -1, -1]), up, down),
            aten.unsqueeze.default(aten.permute.default(scattered(values, places), [1, 0]), 2),
        )
    ),
}


# The sum over experts; where scores come last, also rows that slots share, and the sum of slots.
REWRITES = {"repeated rows": 1, "a broadcast": 1, "scores at the end": 3}


@pytest.mark.parametrize("name", SPELLINGS)
def test_only_chosen_experts_count(name: str) -> None:
    program = build(SPELLINGS[name])
    fire(program, CanonicalizeOps())
    check_pass(program, RecognizeExperts(), REWRITES[name])
    targets = [node.target for node in program.graph.nodes]
    assert targets.count(gw.routed_linear.default) == 2
    assert bmm not in targets and aten.repeat.default not in targets


def test_the_graph_of_chosen_experts() -> None:
    program = build(block)
    fire(program, CanonicalizeOps(), RecognizeExperts())
    lines = [line for line in format_graph(program).splitlines() if " = " in line]
    assert [line.split(" = ")[1] for line in lines[-14:]] == [
        "aten.unsqueeze(%getitem_2, 2)",
        "aten.eq.Tensor(%unsqueeze_2, %places_5)",
        "aten.unsqueeze(%sigmoid_1, 1)",
        "aten.where.ScalarOther(%eq_3, %unsqueeze_3, 0)",
        "aten.sum.dim_IntList(%where_3, [-1])",
        "aten.reshape(%sum_1, [-1, 2, 1])",
        "aten.mul.Tensor(%expand_1, %reshape_1)",
        "gw.routed_linear(%mul_1, %getitem_2, %up_1)",
        "aten.slice.Tensor(%routed_linear_1, 2, 0, 10)",
        "aten.silu(%slice_5)",
        "aten.slice.Tensor(%routed_linear_1, 2, 10, 20)",
        "aten.mul.Tensor(%silu_1, %slice_6)",
        "gw.routed_linear(%mul_2, %getitem_2, %down_1)",
        "aten.sum.dim_IntList(%routed_linear_2, [1])",
    ]


NEAR_MISSES: dict[str, tuple[Callable[..., Any], str]] = {
    "scores that are small": (
        lambda x, values, places, up, down: summed(
            gated(repeated(x, aten.softmax.int(scattered(values, places), 1)), up, down)
        ),
        "not provably zero",
    ),
    "zeros that become ones": (
        lambda x, values, places, up, down: summed(
            bmm(
                aten.cos.default(
                    aten.slice.Tensor(bmm(repeated(x, scattered(values, places)), up), 2, 0, INNER)
                ),
                down,
            )
        ),
        "not provably zero",
    ),
    "scores of the places behind the first choice": (
        lambda x, values, places, up, down: summed(gated(repeated(x, behind(places)), up, down)),
        "not provably zero",
    ),
    "rows of another order": (
        lambda x, values, places, up, down: summed(
            gated(
                aten.reshape.default(
                    mul(
                        aten.repeat_interleave.self_int(x, EXPERTS, 0),
                        aten.reshape.default(
                            aten.permute.default(scattered(values, places), [1, 0]), [-1, 1]
                        ),
                    ),
                    [EXPERTS, -1, WIDTH],
                ),
                up,
                down,
            )
        ),
        "aten.repeat_interleave.self_int over experts",
    ),
}


@pytest.mark.parametrize("name", NEAR_MISSES)
def test_what_is_not_provably_zero_is_left(name: str) -> None:
    function, reason = NEAR_MISSES[name]
    program = build(function)
    fire(program, CanonicalizeOps())
    _, misses = fire(program, RecognizeExperts())
    assert any(reason in miss for miss in misses), misses
    assert bmm in [node.target for node in program.graph.nodes]
