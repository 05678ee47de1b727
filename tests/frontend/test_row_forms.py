"""Forms pass through operators in both directions alike, and only where rows stay apart."""

from __future__ import annotations

import math
import operator
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext
from torch.utils import _pytree as pytree

from graphwright.frontend.row_parts.form_rules import (
    cat_parts,
    form_after,
    forms_before,
)
from graphwright.frontend.row_parts.forms import (
    Form,
    NoFormError,
    rows_input,
)

aten = torch.ops.aten
MODE = FakeTensorMode(shape_env=ShapeEnv(), static_shapes=False)
LAST = 9223372036854775807
LAYER_NORM = aten.native_layer_norm.default


def symbolic(*sizes: int) -> torch.Tensor:
    """A fake tensor; sizes of 10 and more are symbolic."""
    dynamic = [DimDynamic.DYNAMIC if size >= 10 else DimDynamic.STATIC for size in sizes]
    context: Any = StatelessSymbolicContext(dynamic_sizes=dynamic)
    return MODE.from_tensor(torch.empty(sizes), symbolic_context=context)


ROWS = symbolic(10, 11, 6)  # [B, S, 6]
BATCH, LENGTH = ROWS.shape[:2]
TABLE = ROWS.reshape(-1, 6)  # [B * S, 6]
HEADS = ROWS.reshape(BATCH, LENGTH, 2, 3).transpose(1, 2)  # [B, 2, S, 3]
WEIGHT = symbolic(6, 4)


def node_of(target: Any, *args: Any) -> fx.Node:
    """`target` called in a graph; each tensor and each symbolic size is an input."""
    graph = fx.Graph()
    count = iter(range(9))

    def placeholder(value: Any) -> fx.Node:
        node = graph.placeholder(f"x{next(count)}")
        node.meta["val"] = value
        return node

    nodes = pytree.tree_map_only((torch.Tensor, torch.SymInt), placeholder, list(args))
    node = graph.call_function(target, tuple(nodes))
    node.meta["val"] = target(*args)
    return node


def through(node: fx.Node, *lead: int) -> tuple[int, ...]:
    """The form after `node` for one of its first input; it must lead back to that one."""
    source, form = node.all_input_nodes[0], Form(lead)
    made = form_after(node, source, form)
    assert forms_before(node, made)[source] == form
    return made.lead


KEPT = {
    "pointwise": (aten.relu.default, (ROWS,), (0, 1), (0, 1)),
    "two operands": (aten.mul.Tensor, (ROWS, ROWS), (0, 1), (0, 1)),
    "a number": (aten.mul.Scalar, (HEADS, 2.0), (0, 2), (0, 2)),
    "new dimensions in front": (aten.add.Tensor, (TABLE, symbolic(1, 1, 6)), (0,), (1,)),
    "features repeated": (aten.mul.Tensor, (ROWS[:, :, :1], ROWS), (0, 1), (0, 1)),
    "heads": (aten.view.default, (ROWS, [BATCH, LENGTH, 2, 3]), (0, 1), (0, 1)),
    "one table": (aten.view.default, (ROWS, [BATCH * LENGTH, 6]), (0, 1), (0,)),
    "no table": (aten._unsafe_view.default, (TABLE, [BATCH, LENGTH, 6]), (0,), (0, 1)),
    "the same view": (aten.view.default, (HEADS, [BATCH, 2, LENGTH, 3]), (0, 2), (0, 2)),
    "heads as rows": (aten.reshape.default, (HEADS, [2 * BATCH * LENGTH, 3]), (0, 1, 2), (0,)),
    "rows turned": (aten.transpose.int, (ROWS, 0, -2), (0, 1), (1, 0)),
    "a permutation": (aten.permute.default, (HEADS, [2, 0, 3, 1]), (0, 2), (1, 0)),
    "a dimension behind": (aten.unsqueeze.default, (ROWS, -1), (0, 1), (0, 1)),
    "a dimension less": (aten.squeeze.dim, (HEADS[:, :1], 1), (0, 2), (0, 1)),
    "a mean": (aten.mean.dim, (ROWS, [-1], True), (0, 1), (0, 1)),
    "a mean of heads": (aten.mean.dim, (HEADS, [1]), (0, 2), (0, 1)),
    "a sum": (aten.sum.dim_IntList, (HEADS, [1, -1]), (0, 2), (0, 1)),
    "a largest": (aten.amax.default, (HEADS, [1], True), (0, 2), (0, 2)),
    "a smallest": (aten.amin.default, (ROWS, [2]), (1, 0), (1, 0)),
    "a slice": (aten.slice.Tensor, (HEADS, 3, 1, LAST), (0, 2), (0, 2)),
    "an entry": (aten.select.int, (HEADS, 1, -1), (0, 2), (0, 1)),
    "cat": (aten.cat.default, ([ROWS, ROWS[:, :, :2]], -1), (0, 1), (0, 1)),
    "cat with nothing": (aten.cat.default, ([ROWS, ROWS[:, :, 6:]], 2), (0, 1), (0, 1)),
    "mm": (aten.mm.default, (TABLE, WEIGHT), (0,), (0,)),
    "a cast": (aten._to_copy.default, (HEADS,), (2, 0), (2, 0)),
    "a norm": (LAYER_NORM, (HEADS, [3], None, None, 1e-5), (0, 2), (0, 2)),
}


@pytest.mark.parametrize("case", KEPT)
def test_rows_that_stay_apart_have_forms_that_agree_in_both_directions(case: str) -> None:
    target, args, before, after = KEPT[case]
    assert through(node_of(target, *args), *before) == after


ACROSS = "works across rows"
MIXED = {
    "a mean of rows": (aten.mean.dim, (ROWS, [1]), (0, 1), ACROSS),
    "a mean of all": (aten.sum.dim_IntList, (ROWS, []), (0, 1), ACROSS),
    "some rows": (aten.slice.Tensor, (HEADS, -2, 0, 5), (0, 2), ACROSS),
    "one row": (aten.select.int, (ROWS, 1, -1), (0, 1), ACROSS),
    "one row of one": (aten.squeeze.dim, (ROWS[:1], 0), (0, 1), ACROSS),
    "a norm of rows": (LAYER_NORM, (torch.empty(4, 6), [4, 6], None, None, 0.1), (0,), ACROSS),
    "rows cut": (aten.view.default, (ROWS, [BATCH, LENGTH * 2, 3]), (0, 1), "cut anew"),
    "rows joined": (aten.view.default, (torch.empty(1, 6), [6]), (0,), "joins the rows"),
    "rows not in front": (
        aten.reshape.default, (HEADS, [BATCH, 2 * LENGTH, 3]), (0, 2), "do not come first"),
    "rows turned": (aten.reshape.default, (ROWS, [BATCH * LENGTH, 6]), (1, 0), "come first"),
    "rows of unknown size": (aten.view.default, (ROWS, [-1, 6]), (0,), "unknown size"),
    "empty rows": (aten.view.default, (torch.empty(4, 0), [2, 2, 0]), (0,), "empty rows"),
    "rows repeated": (aten.add.Tensor, (torch.empty(1, 6), torch.empty(4, 6)), (0,), "repeats"),
    "the weight of a product": (aten.mm.default, (ROWS[0], WEIGHT), (1,), "sums over rows"),
    "a running sum": (aten.cumsum.default, (ROWS, 2), (0, 1), "not known to keep rows apart"),
    "sorted": (aten.sort.default, (ROWS, 2), (0, 1), "not known to keep rows apart"),
    "bmm": (aten.bmm.default, (ROWS, ROWS.mT), (0, 1), "not known to keep rows apart"),
    "repeated by expand": (aten.expand.default, (ROWS, [-1, -1, 6]), (0, 1), "not known"),
}  # fmt: skip


@pytest.mark.parametrize("case", MIXED)
def test_an_operator_that_mixes_rows_has_no_form(case: str) -> None:
    target, args, lead, reason = MIXED[case]
    node = node_of(target, *args)
    with pytest.raises(NoFormError, match=reason):
        form_after(node, node.all_input_nodes[0], Form(lead))


BEFORE = {
    "more rows": (aten.cat.default, ([ROWS, ROWS], 1), (0, 1), ACROSS),
    "a mean of rows kept": (aten.mean.dim, (ROWS, [0], True), (0, 1), ACROSS),
    "a new dimension as rows": (aten.unsqueeze.default, (ROWS, 1), (0, 1), ACROSS),
    "a product's other side": (aten.mm.default, (TABLE, WEIGHT), (1,), "has its rows in front"),
    "some rows repeated": (
        aten.add.Tensor, (torch.empty(2, 3, 1), torch.empty(2, 1, 1)), (0, 1), "repeats some rows"),
    "a norm of rows": (LAYER_NORM, (torch.empty(4, 6), [6], None, None, 0.1), (1,), ACROSS),
}  # fmt: skip


@pytest.mark.parametrize("case", BEFORE)
def test_a_result_whose_rows_come_from_several_has_no_form_before(case: str) -> None:
    target, args, lead, reason = BEFORE[case]
    with pytest.raises(NoFormError, match=reason):
        forms_before(node_of(target, *args), Form(lead))


def test_operands_without_rows_must_be_the_same_for_all() -> None:
    node = node_of(aten.where.ScalarOther, torch.empty(6) > 0, torch.empty(4, 6), 0.0)
    condition, rows = node.all_input_nodes
    assert forms_before(node, Form((0,))) == {condition: None, rows: Form((0,))}
    joined = node_of(aten.cat.default, [torch.empty(4, 0), torch.empty(4, 6)], 1)
    _nothing, rows = joined.all_input_nodes
    assert cat_parts(joined) == [rows] and forms_before(joined, Form((0,))) == {rows: Form((0,))}
    bias, table, weight = torch.empty(4), torch.empty(5, 6), torch.empty(6, 4)
    product = node_of(aten.addmm.default, bias, table, weight)
    first, second, third = product.all_input_nodes
    assert rows_input(product) is second
    assert forms_before(product, Form((0,))) == {first: None, second: Form((0,)), third: None}
    with pytest.raises(NoFormError, match="sums over rows"):
        form_after(product, first, Form((0,)))
    given = [torch.empty(4, 6), [6], torch.empty(6), torch.empty(6), 1e-5]
    norm = node_of(LAYER_NORM, *given)
    source, *others = norm.all_input_nodes
    assert forms_before(norm, Form((0,))) == {source: Form((0,)), **dict.fromkeys(others)}
    with pytest.raises(NoFormError, match="weight depends on the row"):
        form_after(norm, others[0], Form((0,)))
    item = norm.graph.call_function(operator.getitem, (norm, 0))
    assert form_after(item, norm, Form((0,))) == Form((0,))


# ---- random shapes: what has a form keeps rows apart, and in their order


@st.composite
def calls(draw: st.DrawFn) -> tuple[Any, tuple[Any, ...], tuple[int, ...]]:
    """An operator, its arguments, and the dimensions of the first that count rows."""
    shape = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    rank = len(shape)
    x = torch.arange(float(math.prod(shape))).sin().reshape(shape)
    lead = draw(st.permutations(range(rank)))[: draw(st.integers(1, rank))]
    if draw(st.booleans()):
        lead = sorted(lead)
    dim, other = draw(st.integers(-rank, rank - 1)), draw(st.integers(0, rank - 1))
    dims, keep = sorted(draw(st.sets(st.integers(0, rank - 1), min_size=1))), draw(st.booleans())
    primes = [p for size in shape for p in ([2, 2] if size == 4 else [size])]
    cuts = [0, *sorted(draw(st.sets(st.integers(0, len(primes))))), len(primes)]
    view = [math.prod(primes[a:b]) for a, b in pairwise(cuts)]
    options: list[tuple[Any, tuple[Any, ...]]] = [
        *((op, (x, view)) for op in (aten.view.default, aten.reshape.default)),
        *((op, (x, dims, keep)) for op in (aten.mean.dim, aten.sum.dim_IntList)),
        *((op, (x, dims, keep)) for op in (aten.amax.default, aten.amin.default)),
        (aten.transpose.int, (x, dim, other)),
        (aten.permute.default, (x, draw(st.permutations(range(rank))))),
        (aten.unsqueeze.default, (x, draw(st.integers(-rank - 1, rank)))),
        (aten.squeeze.dim, (x, dim)),
        (aten.select.int, (x, dim, 0)),
        (aten.slice.Tensor, (x, dim, 1 if shape[dim] > 1 else 0, LAST)),
        (aten.cat.default, ([x, x.cos()], dim)),
        (aten.add.Tensor, (x, x.cos())),
        (aten.mul.Tensor, (x, torch.ones([2, *([1] * rank)]))),
        (LAYER_NORM, (x, shape[other:], None, None, 1e-5)),
    ]
    target, args = draw(st.sampled_from(options))
    return target, args, tuple(lead)


def rows_of(value: Any, form: Form) -> torch.Tensor:
    value = value[0] if isinstance(value, tuple) else value
    order = (*form.lead, *form.features(value))
    count = math.prod(value.shape[dim] for dim in form.lead)
    rows: torch.Tensor = value.permute(order).reshape(count, -1)
    return rows


@settings(deadline=None, max_examples=400)
@given(calls(), st.randoms(use_true_random=False))
def test_a_changed_row_changes_that_row_alone(call: Any, dice: Any) -> None:
    target, args, lead = call
    form, x = Form(lead), args[0][0] if target is aten.cat.default else args[0]
    node = node_of(target, *args)
    source = node.all_input_nodes[0]
    try:
        after = form_after(node, source, form)
    except NoFormError:
        return
    back = forms_before(node, after)[source]
    assert back is not None  # but for dimensions of size one, it is the same form
    assert [dim for dim in back.lead if x.shape[dim] != 1] == [d for d in lead if x.shape[d] != 1]
    chosen = dice.randrange(len(rows_of(x, form)))
    other = x.clone()
    rows = other.permute((*lead, *form.features(x)))
    index = torch.unravel_index(torch.tensor(chosen), rows.shape[: len(lead)])
    rows[tuple(index)] += torch.rand(rows.shape[len(lead) :]) + 1
    changed = [[other, args[0][1]], *args[1:]] if args[0] is not x else [other, *args[1:]]
    want, got = rows_of(target(*args), after), rows_of(target(*changed), after)
    assert len(want) == len(rows_of(x, form))
    kept = [row for row in range(len(want)) if row != chosen]
    assert torch.equal(got[kept], want[kept])
