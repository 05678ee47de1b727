"""mark-largest: which keys score highest, said by one op."""

from __future__ import annotations

import operator
from typing import Any

import pytest
import torch
from graphs import fire
from small_decoders import Masks, check_decoder, small_decoder

from graphwright.ir import Level, Program, format_graph
from graphwright.passes.base import PassContext
from graphwright.passes.mark_largest import MarkLargest
from graphwright.passes.running import run_passes

aten = torch.ops.aten
sdpa = aten.scaled_dot_product_attention.default
K = 5


def scored(q: Any, k: Any, m: Masks) -> Any:
    """[1, T, T], later keys hidden; the mean over heads so that no two are equal."""
    products = aten.matmul.default(q, aten.permute.default(k, [0, 1, 3, 2]))
    found = aten.mean.dim(products, [1])
    return aten.masked_fill.Scalar(found, aten.logical_not.default(m.causal), float("-inf"))


def places(x: Any, m: Masks, count: Any = None, **options: Any) -> Any:
    count = torch.sym_min(m.length, K) if count is None else count
    return operator.getitem(aten.topk.default(x, count, **options), 1)


def filled(m: Masks, value: Any, dtype: torch.dtype = torch.bool) -> Any:
    pairs = aten.unsqueeze.default(m.causal, 0)
    return aten.full_like.default(pairs, value, dtype=dtype)


def seen(m: Masks, chosen: Any) -> Any:
    return aten.__and__.Tensor(m.causal, aten.unsqueeze.default(chosen, 1))


def attend(q: Any, k: Any, v: Any, m: Masks) -> Any:
    index = places(scored(q, k, m), m)
    return sdpa(q, k, v, seen(m, aten.scatter.value(filled(m, False), -1, index, True)))


def through_int32(q: Any, k: Any, v: Any, m: Masks) -> Any:
    index = aten._to_copy.default(places(scored(q, k, m), m), dtype=torch.int32)
    left = aten.scatter.value(
        filled(m, True), 2, aten._to_copy.default(index, dtype=torch.int64), False
    )
    return sdpa(q, k, v, seen(m, aten.logical_not.default(left)))


def bias(q: Any, k: Any, v: Any, m: Masks) -> Any:
    lowest = filled(m, torch.finfo(torch.float32).min, torch.float32)
    chosen = aten.scatter.value(lowest, -1, places(scored(q, k, m), m, dim=2), 0)
    hidden = aten.where.Scalar(m.causal, 0.0, float("-inf"))
    return sdpa(q, k, v, aten.add.Tensor(aten.unsqueeze.default(chosen, 1), hidden))


def test_the_places_of_the_largest_become_marks() -> None:
    program = small_decoder(attend, level=Level.CAPTURED)
    assert check_decoder(program, MarkLargest()) == [1]
    text = format_graph(program)
    begin = text.index("%masked_fill_1")
    assert (
        text[begin : text.index("%linear_4")]
        == """\
%masked_fill_1 : f32[1, T, T] = aten.masked_fill.Scalar(%mean_1, %logical_not_1, -inf)
%mark_largest_1 : bool[1, T, T] = gw.mark_largest(%masked_fill_1, k=5)
%le_2 : bool[T, T] = aten.le.Tensor(%positions, %unsqueeze_2)
%unsqueeze_3 : bool[1, 1, T, T] = aten.unsqueeze(%mark_largest_1, 1)
%__and___1 : bool[1, 1, T, T] = aten.__and__.Tensor(%le_2, %unsqueeze_3)
%scaled_dot_product_attention_1 : f32[1, 4, T, 8] = \
aten.scaled_dot_product_attention(%permute_1, %permute_2, %permute_3, %__and___1)
%permute_5 : f32[1, T, 4, 8] = aten.permute(%scaled_dot_product_attention_1, [0, 2, 1, 3])
%reshape_4 : f32[1, T, 32] = aten.reshape(%permute_5, [1, -1, 32])
"""
    )


@pytest.mark.parametrize("core", [through_int32, bias])
def test_other_spellings(core: Any) -> None:
    assert check_decoder(small_decoder(core, level=Level.CAPTURED), MarkLargest()) == [1]


def miss_of(core: Any) -> str:
    program: Program = small_decoder(core, level=Level.CAPTURED)
    before = format_graph(program)
    run_passes(program, (MarkLargest(),), PassContext())
    assert format_graph(program) == before and program.log[-1].rewrites == 0
    (reason,) = program.log[-1].misses
    return reason


def test_near_misses_are_left() -> None:
    def of(base: Any, value: Any = True, dim: int = -1, **options: Any) -> str:
        def core(q: Any, k: Any, v: Any, m: Masks) -> Any:
            index = places(scored(q, k, m), m, **options)
            into = base(m) if callable(base) else base
            chosen = aten.scatter.value(into, dim, index, value)
            return sdpa(q, k, v, seen(m, aten.gt.Scalar(chosen, 0)))

        return miss_of(core)

    assert "the smallest of each row" in of(lambda m: filled(m, False), largest=False)
    assert "another axis than the last" in of(lambda m: filled(m, False), dim=1)
    lower = lambda m: aten.unsqueeze.default(aten.le.Tensor(m.key, m.query), 0)  # noqa: E731
    assert "that is not constant" in of(lower)


def test_another_number_than_the_smaller_of_k_and_all_is_left() -> None:
    def core(q: Any, k: Any, v: Any, m: Masks) -> Any:
        half = operator.floordiv(operator.add(m.length, 1), 2)
        index = places(scored(q, k, m), m, half)
        return sdpa(q, k, v, seen(m, aten.scatter.value(filled(m, False), -1, index, True)))

    assert "not min(k, all)" in miss_of(core)


def test_a_choice_among_few_places_is_nothing_for_it() -> None:
    def core(q: Any, k: Any, v: Any, m: Masks) -> Any:
        index = places(q, m, 3)
        chosen = aten.scatter.value(aten.new_zeros.default(q, [1, 4, m.length, 8]), -1, index, 1.0)
        return sdpa(chosen, k, v, m.causal)

    assert fire(small_decoder(core, level=Level.CAPTURED), MarkLargest()) == ([0], [])
