"""The border of a step: no other one of the kinds that are allowed lets fewer elements cross it."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from graphs import build_program, rows
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import fx

from graphwright.frontend.recurrent.step_cut import StepCut, cut_step, reached
from graphwright.frontend.recurrent.step_vocabulary import StepNodes
from graphwright.ir import FrontendError, Program
from graphwright.ir.layout import size_of

aten = torch.ops.aten


def cut_of(program: Program, states: list[str], new: list[str]) -> tuple[StepCut, StepNodes]:
    """The step of a program whose `states` are inputs."""
    by_name = {node.name: node for node in program.graph.nodes}
    tokens = size_of(program.placeholder("tokens").meta["val"].shape[0])
    known = StepNodes(tokens)
    order = {node: place for place, node in enumerate(program.graph.nodes)}
    given = [by_name[name] for name in states], [by_name[name] for name in new]
    return cut_step(*given, set(), set(), order, known), known


def names(nodes: list[fx.Node]) -> list[str]:
    return [node.name for node in nodes]


def program_of(function: Any, **inputs: Any) -> Program:
    head: dict[str, Any] = {"tokens": rows(dtype=torch.int64, batch=False)}
    flat = eval(
        f"lambda tokens, {', '.join(inputs)}: function({', '.join(inputs)})",
        {"function": function},
    )
    return build_program(flat, **head, **inputs)


def one(*sizes: int) -> Any:
    return rows(*sizes, batch=False)


def test_a_sum_leaves_instead_of_the_state() -> None:
    """128 elements of a state [8, 16] that is summed up at once, and the decay comes in narrow."""

    def function(state: Any, x: Any, decay: Any) -> Any:
        wide = aten.expand.default(aten.unsqueeze.default(aten.exp.default(decay), 2), [-1, 8, 16])
        new = aten.add.Tensor(aten.mul.Tensor(state, wide), aten.unsqueeze.default(x, 1))
        y = aten.sum.dim_IntList(aten.mul.Tensor(new, 2.0), [1])
        return aten.tanh.default(y)

    program = program_of(function, state=one(8, 16), x=one(16), decay=one(8))
    cut, known = cut_of(program, ["state"], ["add_tensor"])
    assert names(cut.results) == ["sum_dim_int_list"]
    assert [known.row_size(row) for row in cut.rows] == [8, 16]
    assert "exp_default" not in names(cut.nodes)  # all tokens at once
    assert names(cut.nodes)[-1] == "sum_dim_int_list"


def test_products_with_weights_stay_outside() -> None:
    def function(state: Any, x: Any, w: Any) -> Any:
        new = aten.mul.Tensor(state, aten.sigmoid.default(aten.linear.default(x, w)))
        return aten.linear.default(new, w)

    program = program_of(function, state=one(6), x=one(6), w=torch.randn(6, 6))
    cut, _ = cut_of(program, ["state"], ["mul_tensor"])
    assert names(cut.nodes) == ["mul_tensor"] and not cut.weights
    assert names(cut.rows) == ["sigmoid_default"] and names(cut.results) == ["mul_tensor"]


def test_what_only_repeats_a_weight_is_no_weight() -> None:
    def function(state: Any, x: Any, w: Any) -> Any:
        wide = aten.expand.default(aten.unsqueeze.default(w, 1), [6, 4])
        new = aten.add.Tensor(aten.mul.Tensor(state, wide), aten.unsqueeze.default(x, 2))
        return new

    program = program_of(function, state=one(6, 4), x=one(6), w=torch.randn(6))
    cut, _ = cut_of(program, ["state"], ["add_tensor"])
    (weight,) = cut.weights
    assert weight.meta["val"].numel() == 6 and names(cut.rows) == ["unsqueeze_default_1"]


def test_an_op_that_no_step_can_hold_is_named() -> None:
    program = program_of(
        lambda state, x: aten.add.Tensor(aten.cumsum.default(state, 1), x), state=one(6), x=one(6)
    )
    with pytest.raises(FrontendError, match=r"'cumsum_default' \(aten.cumsum.default\), which no"):
        cut_of(program, ["state"], ["add_tensor"])


# ---- against all borders of small graphs

WIDE, NARROW = (2, 8), (2, 1)
OPS = ("add", "mul", "neg", "narrow", "widen", "linear")


def random_program(moves: list[tuple[int, int, int]]) -> tuple[Program, fx.Node]:
    """A state [T, 2, 8], rows [T, 2, 1] and [T, 2, 8], and ops in between."""

    def function(state: Any, x: Any, z: Any, w: Any) -> Any:
        values: list[tuple[Any, bool]] = [(state, True), (x, False), (z, True)]
        for op, first, second in moves:
            (a, wide), (b, other) = (values[i % len(values)] for i in (first, second))
            kind = OPS[op]
            if kind in ("add", "mul"):
                target = aten.add.Tensor if kind == "add" else aten.mul.Tensor
                values.append((target(a, b), wide or other))
            elif kind == "neg":
                values.append((aten.neg.default(a), wide))
            elif kind == "narrow":
                values.append((aten.sum.dim_IntList(a, [2], True), False))
            elif kind == "widen":
                values.append((aten.expand.default(a, [-1, 2, 8]), True))
            else:
                a = a if wide else aten.expand.default(a, [-1, 2, 8])
                values.append((aten.linear.default(a, w), True))
        new = aten.add.Tensor(aten.mul.Tensor(state, 0.5), values[len(values) // 2][0])
        found.append(new.node)
        return aten.sum.dim_IntList(aten.mul.Tensor(new, values[-1][0]), [2])

    found: list[fx.Node] = []
    program = program_of(
        function, state=one(*WIDE), x=one(*NARROW), z=one(*WIDE), w=torch.ones(8, 8)
    )
    return program, found[0]


MOVES = st.lists(
    st.tuples(st.integers(0, len(OPS) - 1), st.integers(0, 7), st.integers(0, 7)),
    min_size=1, max_size=5,
)  # fmt: skip


@given(moves=MOVES)
@settings(
    deadline=None, derandomize=True, max_examples=60, database=None, phases=[Phase.generate],
    suppress_health_check=[HealthCheck.too_slow],
)  # fmt: skip
def test_no_border_is_crossed_by_fewer(moves: list[tuple[int, int, int]]) -> None:
    program, new = random_program(moves)
    state = program.placeholder("state")
    try:
        cut, known = cut_of(program, ["state"], [new.name])
    except FrontendError as error:
        assert "which no step can hold" in str(error)
        return
    inside = set(cut.nodes)
    behind = reached([state], lambda node: node.users)
    loop = (behind & reached([new], lambda node: node.all_input_nodes)) - {state}
    assert loop <= inside
    check_one_token(cut, known)
    # No row needs the step itself: else it could not be computed before it.
    assert not set(cut.rows) & behind

    # The border behind the step, by all choices of nodes.
    leaving = [node for node in behind - loop - {state} if allowed(node, known)]
    best = min(
        leaves(loop | chosen, state, known)
        for chosen in subsets(leaving)
        if closed(chosen, loop, behind, state)
    )
    assert leaves((inside & behind) | loop, state, known) == best
    # And the one before it.
    needed = reached(list(inside & behind), lambda node: node.all_input_nodes) - behind
    coming = [node for node in needed if allowed(node, known)]
    core = inside & behind
    fewest = min(comes(core | chosen, state, known) for chosen in subsets(coming))
    assert comes(inside, state, known) == fewest


def allowed(node: fx.Node, known: StepNodes) -> bool:
    return (
        node.op == "call_function"
        and known.inside_with_state(node)
        and (node.target is not aten.linear.default)
    )


def subsets(nodes: list[fx.Node]) -> list[set[fx.Node]]:
    return [
        {node for node, taken in zip(nodes, choice, strict=True) if taken}
        for choice in product((False, True), repeat=len(nodes))
    ]


def closed(chosen: set[fx.Node], loop: set[fx.Node], behind: set[fx.Node], state: fx.Node) -> bool:
    """Is all inside that nodes inside need of the state?"""
    inside = chosen | loop | {state}
    return all(source in inside for node in chosen for source in node.all_input_nodes
               if source in behind)  # fmt: skip


def leaves(inside: set[fx.Node], state: fx.Node, known: StepNodes) -> float:
    """Elements of what is read outside, for each token."""
    given = inside | {state}
    return sum(known.row_size(node) for node in given if any(u not in given for u in node.users))


def comes(inside: set[fx.Node], state: fx.Node, known: StepNodes) -> float:
    """Elements of rows that are read from outside, for each token."""
    read = {source for node in inside for source in node.all_input_nodes} - inside - {state}
    return sum(known.row_size(node) for node in read if not known.is_static(node))


def check_one_token(cut: StepCut, known: StepNodes) -> None:
    """Inside, values of tokens have them first, and nothing reduces or moves them."""
    for node in [*cut.nodes, *cut.rows]:
        assert known.row_size(node) < float("inf")
