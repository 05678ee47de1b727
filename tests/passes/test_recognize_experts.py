"""recognize-experts."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
from graphs import build_program, check_pass, fire, rows

from graphwright.ir import PassError, Program, format_graph
from graphwright.passes.recognize_experts import RecognizeExperts

aten, gw = torch.ops.aten, torch.ops.gw
mul, unsqueeze, reshape = aten.mul.Tensor, aten.unsqueeze.default, aten.reshape.default
EXPERTS, WIDTH, INNER, SLOTS = 8, 6, 10, 3


def weights(*shape: int) -> torch.Tensor:
    return torch.randn(EXPERTS, *shape, generator=torch.Generator().manual_seed(len(shape)))


def program_of(function: Callable[..., Any], **parameters: Any) -> Program:
    """`function` of tokens [T], x [T, WIDTH], ids [T, SLOTS] and what `parameters` adds.

    The ids are the first SLOTS places of an input `ids` [T, EXPERTS].
    """
    signature = inspect.signature(function)

    def routed(*args: Any) -> Any:
        given = dict(zip(signature.parameters, args, strict=True))
        given["ids"] = operator.getitem(gw.top_k.default(given["ids"], k=SLOTS), 1)
        return function(**given)

    routed.__signature__ = signature  # type: ignore[attr-defined]
    return build_program(
        routed,
        tokens=rows(dtype=torch.int64, batch=False),
        x=rows(WIDTH, batch=False),
        ids=rows(EXPERTS, batch=False),
        **parameters,
    )


def column(weight: Any, x: Any) -> Any:
    """weight [P, N, K] · x [P, K]."""
    return aten.squeeze.dim(aten.bmm.default(weight, unsqueeze(x, 2)), 2)


def row(x: Any, weight: Any) -> Any:
    """x [P, K] · weight [P, K, N]."""
    return aten.squeeze.dim(aten.bmm.default(unsqueeze(x, 1), weight), 1)


def weighted(y: Any, weights: Any) -> Any:
    """Pairs [T * SLOTS, WIDTH] by the weights [T, SLOTS], summed over the slots of each token."""
    product = mul(y, reshape(weights, [-1, 1]))
    return aten.sum.dim_IntList(reshape(product, [-1, SLOTS, WIDTH]), [1])


def test_gathered_experts_over_pairs() -> None:
    def function(tokens: Any, x: Any, ids: Any, p: Any, up: Any, b: Any, down: Any) -> Any:
        flat = reshape(ids, [-1])
        rows = aten.repeat_interleave.self_int(x, SLOTS, 0)
        hidden = aten.add.Tensor(column(aten.index.Tensor(up, [flat]), rows),
                                 aten.index.Tensor(b, [flat]))  # fmt: skip
        gate = aten.silu.default(aten.slice.Tensor(hidden, 1, 0, INNER))
        hidden = mul(gate, aten.slice.Tensor(hidden, 1, INNER, 2 * INNER))
        return weighted(column(aten.index.Tensor(down, [flat]), hidden), p)

    program = program_of(
        function,
        p=rows(SLOTS, batch=False),
        up=weights(2 * INNER, WIDTH),
        b=weights(2 * INNER),
        down=weights(WIDTH, INNER),
    )
    check_pass(program, RecognizeExperts(), 5)
    assert (
        format_graph(program)
        == """\
%tokens : i64[T] = input
%x : f32[T, 6] = input
%ids : f32[T, 8] = input
%p : f32[T, 3] = input
%up : f32[8, 20, 6] = weight
%b : f32[8, 20] = weight
%down : f32[8, 6, 10] = weight
%top_k_1 : (f32[T, 3], i64[T, 3]) = gw.top_k(%ids, k=3)
%getitem_1 : i64[T, 3] = getitem(%top_k_1, 1)
%routed_linear_1 : f32[T, 3, 20] = gw.routed_linear(%x, %getitem_1, %up, %b)
%slice_1 : f32[T, 3, 10] = aten.slice.Tensor(%routed_linear_1, 2, 0, 10)
%silu_1 : f32[T, 3, 10] = aten.silu(%slice_1)
%slice_2 : f32[T, 3, 10] = aten.slice.Tensor(%routed_linear_1, 2, 10, 20)
%mul_1 : f32[T, 3, 10] = aten.mul.Tensor(%silu_1, %slice_2)
%routed_linear_2 : f32[T, 3, 6] = gw.routed_linear(%mul_1, %getitem_1, %down)
%weighted_sum_1 : f32[T, 6] = gw.weighted_sum(%routed_linear_2, %p)
return %weighted_sum_1
"""
    )


def test_matrices_the_other_way_round_are_turned_lazily() -> None:
    def function(tokens: Any, x: Any, ids: Any, w: Any) -> Any:
        rows = aten.repeat_interleave.self_int(x, SLOTS, 0)
        y = row(rows, aten.index.Tensor(w, [reshape(ids, [-1])]))
        return reshape(y, [-1, SLOTS * INNER])

    program = program_of(function, w=weights(WIDTH, INNER))
    check_pass(program, RecognizeExperts(), 2)
    (name,) = program.weights
    assert program.weights[name].shape == (EXPERTS, INNER, WIDTH)
    assert program.weights[name].describe() == "permute(constant)"


@pytest.mark.parametrize("spelling", ("expand", "index", "row of slots"))
def test_one_row_for_all_slots(spelling: str) -> None:
    """However a token's row is repeated, the product reads it once; other rows are one a slot."""

    def function(tokens: Any, x: Any, ids: Any, w: Any) -> Any:
        if spelling == "index":
            length = aten.sym_size.int(tokens, 0)
            count = aten.arange.default(length * SLOTS)
            token = aten.floor_divide.default(count, SLOTS)
            pairs = aten.index.Tensor(x, [token])
        else:
            pairs = aten.expand.default(unsqueeze(x, 1), [-1, SLOTS, -1])
            pairs = reshape(pairs, [-1, WIDTH])
        if spelling == "row of slots":
            pairs = mul(pairs, aten._to_copy.default(reshape(ids, [-1, 1]), dtype=torch.float32))
        y = column(aten.index.Tensor(w, [reshape(ids, [-1])]), pairs)
        return reshape(y, [-1, SLOTS, INNER])

    program = program_of(function, w=weights(INNER, WIDTH))
    check_pass(program, RecognizeExperts(), 2)
    (node,) = [n for n in program.graph.nodes if n.target is gw.routed_linear.default]
    assert node.args[0].meta["val"].dim() == (3 if spelling == "row of slots" else 2)


def test_slots_that_are_an_axis_already() -> None:
    """As einsum leaves it: a matrix for each slot, and all slots of a token stacked in one."""

    def function(tokens: Any, x: Any, ids: Any, w: Any, v: Any) -> Any:
        stacked = reshape(aten.index.Tensor(w, [ids]), [-1, SLOTS * INNER, WIDTH])
        y = reshape(aten.bmm.default(stacked, unsqueeze(x, 2)), [-1, SLOTS, INNER])
        z = aten.matmul.default(aten.index.Tensor(v, [ids]), unsqueeze(y, 3))
        return aten.squeeze.dim(z, 3)

    program = program_of(function, w=weights(INNER, WIDTH), v=weights(WIDTH, INNER))
    check_pass(program, RecognizeExperts(), 2)
    assert "index" not in format_graph(program)


def test_one_expert_for_each_token() -> None:
    def function(tokens: Any, x: Any, ids: Any, w: Any) -> Any:
        first = aten.select.int(ids, 1, 0)
        return column(aten.index.Tensor(w, [first]), x)

    program = program_of(function, w=weights(INNER, WIDTH))
    check_pass(program, RecognizeExperts(), 1)
    assert "gw.routed_linear" in format_graph(program)


def test_what_happens_between_the_products_is_kept() -> None:
    def function(tokens: Any, x: Any, ids: Any, w: Any, norm: Any, v: Any) -> Any:
        flat = reshape(ids, [-1])
        y = column(aten.index.Tensor(w, [flat]), aten.repeat_interleave.self_int(x, SLOTS, 0))
        half = aten.slice.Tensor(y, -1, 0, INNER // 2)
        y = aten.cat.default([aten.clamp.default(half, -1.0, 1.0), aten.select.int(
            unsqueeze(aten.neg.default(half), 1), 1, 0)], -1)  # fmt: skip
        y = aten.layer_norm.default(y, [INNER], norm)
        y = aten.sub.Tensor(y, aten.mean.dim(y, [-1], True))
        y = mul(y, aten.softmax.int(y, 1))
        y = aten.linear.default(y, v)
        return reshape(y, [-1, SLOTS * WIDTH])

    program = program_of(
        function, w=weights(INNER, WIDTH), norm=torch.rand(INNER), v=torch.rand(WIDTH, INNER)
    )
    check_pass(program, RecognizeExperts(), 2)
    values = [n.meta["val"] for n in program.graph.nodes if n.op == "call_function"]
    sizes = {str(value.shape[0]) for value in values if isinstance(value, torch.Tensor)}
    assert len(sizes) == 1, "only tokens are counted"


def along_pairs(tokens: Any, x: Any, ids: Any, w: Any) -> Any:
    y = column(aten.index.Tensor(w, [reshape(ids, [-1])]),
               aten.repeat_interleave.self_int(x, SLOTS, 0))  # fmt: skip
    return reshape(aten.cumsum.default(y, 0), [-1, SLOTS, INNER])


def flipped(tokens: Any, x: Any, ids: Any, w: Any) -> Any:
    y = column(aten.index.Tensor(w, [reshape(ids, [-1])]),
               aten.repeat_interleave.self_int(x, SLOTS, 0))  # fmt: skip
    return reshape(aten.flip.default(y, [0]), [-1, SLOTS, INNER])


def added_up(tokens: Any, x: Any, ids: Any, w: Any) -> Any:
    y = aten.repeat_interleave.self_int(x, SLOTS, 0)
    return aten.sum.dim_IntList(y, [0])


def slots_first(tokens: Any, x: Any, ids: Any, w: Any) -> Any:
    flat = reshape(aten.permute.default(ids, [1, 0]), [-1])
    y = column(aten.index.Tensor(w, [flat]), aten.repeat.default(x, [SLOTS, 1]))
    return reshape(y, [SLOTS, -1, INNER])


def computed(tokens: Any, x: Any, ids: Any, w: Any) -> Any:
    table = unsqueeze(aten.slice.Tensor(x, 1, 0, 1), 2)
    y = aten.matmul.default(table, unsqueeze(x, 1))
    return aten.sum.dim_IntList(y, [1])


@pytest.mark.parametrize(
    ("function", "reason"),
    (
        (along_pairs, "'cumsum_default' is aten.cumsum.default over pairs of token and slot."),
        (flipped, "'flip_default' works along the pairs of a step."),
        (added_up, "is aten.sum.dim_IntList, which mixes pairs of token and slot."),
        (slots_first, "'reshape_default' makes pairs of 'permute_default'"),
        (computed, None),
    ),
)
def test_near_misses(function: Callable[..., Any], reason: str | None) -> None:
    program = program_of(function, w=weights(INNER, WIDTH))
    before = format_graph(program)
    counts, misses = fire(program, RecognizeExperts())
    assert counts == [0] and format_graph(program) == before
    assert any(reason in miss for miss in misses) if reason else not misses


def masked(ids: Any, compare: Any, number: int, other: int) -> Any:
    return aten.masked_fill.Scalar(ids, compare(ids, number), other)


def kept(ids: Any, compare: Any, number: int, other: int) -> Any:
    return aten.where.ScalarOther(compare(ids, number), ids, other)


BOUNDED = {
    "moved": lambda ids: aten.clone.default(aten.permute.default(ids, [0, 1])),
    "clamped": lambda ids: aten.clamp.default(aten.add.Tensor(ids, 5), None, EXPERTS - 1),
    "wrapped": lambda ids: aten.remainder.Scalar(aten.add.Tensor(ids, 5), EXPERTS),
    "cast": lambda ids: aten._to_copy.default(
        aten._to_copy.default(ids, dtype=torch.int32), dtype=torch.int64
    ),
    "joined": lambda ids: aten.cat.default([aten.slice.Tensor(ids, 1, 0, 2),
                                            aten.slice.Tensor(ids, 1, 2, 3)], 1),
    "masked": lambda ids: aten.masked_fill.Scalar(ids, aten.gt.Scalar(ids, 3), 0),
    "one beyond masked": lambda ids: masked(aten.add.Tensor(ids, 1), aten.eq.Scalar, EXPERTS, 0),
    "all beyond masked": lambda ids: masked(aten.add.Tensor(ids, 9), aten.ge.Scalar, EXPERTS, 3),
    "kept": lambda ids: kept(aten.sub.Tensor(ids, 2), aten.ge.Scalar, 0, 3),
    "kept above": lambda ids: kept(aten.sub.Tensor(ids, 2), aten.gt.Scalar, -1, 3),
    "unlike": lambda ids: kept(aten.add.Tensor(ids, 1), aten.ne.Scalar, EXPERTS, 3),
}  # fmt: skip
UNBOUNDED = {
    "shifted": (lambda ids: aten.add.Tensor(ids, 1), "may be 1 to 8"),
    "negative": (lambda ids: aten.sub.Tensor(ids, 1), "may be -1 to 6"),
    "masked": (
        lambda ids: aten.masked_fill.Scalar(ids, aten.gt.Scalar(ids, 3), EXPERTS),
        "may be 0 to 8",
    ),
    "another one masked": (
        lambda ids: masked(aten.add.Tensor(ids, 1), aten.eq.Scalar, 4, 0),
        "may be 0 to 8",
    ),
    "masked by another": (
        lambda ids: aten.masked_fill.Scalar(aten.add.Tensor(ids, 1), aten.eq.Scalar(ids, 8), 0),
        "may be 0 to 8",
    ),
    "kept below": (lambda ids: kept(ids, aten.lt.Scalar, 3, EXPERTS), "may be 0 to 8"),
    "multiplied": (lambda ids: mul(ids, 2), "may be 0 to 14"),
    "multiplied by a negative": (lambda ids: mul(ids, -1), "may be -7 to 0"),
    "halved": (lambda ids: aten.div.Tensor_mode(ids, 2, rounding_mode="floor"), "any numbers"),
}


def routed_by(choose: Callable[[Any], Any]) -> Program:
    def function(tokens: Any, x: Any, ids: Any, w: Any) -> Any:
        gathered = aten.index.Tensor(w, [choose(ids)])
        rows = aten.expand.default(unsqueeze(unsqueeze(x, 1), 3), [-1, SLOTS, -1, -1])
        return aten.squeeze.dim(aten.matmul.default(gathered, rows), 3)

    return program_of(function, w=weights(INNER, WIDTH))


@pytest.mark.parametrize("name", BOUNDED)
def test_experts_that_stay_in_range(name: str) -> None:
    check_pass(routed_by(BOUNDED[name]), RecognizeExperts(), 1)


@pytest.mark.parametrize("name", UNBOUNDED)
def test_experts_that_may_be_out_of_range_are_refused(name: str) -> None:
    choose, reason = UNBOUNDED[name]
    with pytest.raises(PassError, match=f"{reason}, but its weight holds 8"):
        fire(routed_by(choose), RecognizeExperts())
