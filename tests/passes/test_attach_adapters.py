"""attach-adapters."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from graphs import build_program, fire, random_inputs, rows
from hypothesis import given, settings
from hypothesis import strategies as st

from graphwright.ir import ConstantTensor, Expression, PassError, Program, Weight, format_graph
from graphwright.ir.adapters import AdaptedWeight, Adapter, LowRank, merged
from graphwright.ir.interpreter import run_program
from graphwright.ir.memory import buffer_name, in_place, results
from graphwright.ir.tolerance import check_close
from graphwright.passes.attach_adapters import AttachAdapters
from graphwright.passes.fold_scales import FoldScales
from graphwright.passes.fuse_linear import FuseLinear
from graphwright.passes.merge_projections import MergeProjections
from graphwright.passes.reorder_projections import ReorderProjections

aten = torch.ops.aten
linear, add = aten.linear.default, aten.add.Tensor
TOKENS = 7


def low_rank(outputs: int, inputs: int, rank: int, scale: float, dtype: Any = None) -> LowRank:
    a, b = torch.randn(rank, inputs), torch.randn(outputs, rank)
    a, b = (each.to(dtype or torch.float32) for each in (a, b))
    return LowRank(ConstantTensor.of(a), ConstantTensor.of(b), scale)


def adapt(program: Program, adapters: int, **changes: list[LowRank | None]) -> None:
    """Weights of the program get changes, one by each adapter."""
    program.adapters = tuple(Adapter(f"a{i}", "", "", 1, (1, 1)) for i in range(adapters))
    for name, each in changes.items():
        base = program.weights[name]
        program.weights[name] = AdaptedWeight(base.shape, base.dtype, base, tuple(each))


class Changed:
    """The weights of a program with one adapter in them."""

    def __init__(self, adapter: int | None) -> None:
        self.adapter = adapter

    def load(self, program: Program, name: str) -> torch.Tensor:
        weight = program.weights[name]
        return weight.load() if self.adapter is None else merged(weight, self.adapter)


def check_numbers(before: Program, after: Program, adapters: int) -> None:
    """Each token is what it is with its adapter merged, and exactly that of the base with none."""
    inputs = random_inputs(before, TOKENS)
    chosen = torch.arange(TOKENS) % (adapters + 1)
    got = run_program(after, {**inputs, "adapters": chosen[:, None]})
    for number in range(adapters + 1):
        source = Changed(None if number == adapters else number)
        want = run_program(before, inputs, source)
        mine = chosen == number
        check_close(got[:, mine], want[:, mine], "exact" if number == adapters else "reassociating")


def attached(program: Program, adapters: int, rewrites: int, *others: Any) -> None:
    """The pass fires so often, behind the others; keeps the numbers; and fires no more."""
    before = program.copy()
    counts, misses = fire(program, *others, AttachAdapters())
    assert counts[-1] == rewrites, (counts, misses)
    check_numbers(before, program, adapters)
    assert fire(program, AttachAdapters())[0] == [0]
    fire(program, FuseLinear())
    check_numbers(before, program, adapters)


def test_fires() -> None:
    def function(x: Any, w: Any, h: Any) -> Any:
        return linear(aten.relu.default(linear(x, w)), h)

    program = build_program(function, x=rows(8), w=torch.rand(6, 8), h=torch.rand(5, 6))
    adapt(program, 2, w=[low_rank(6, 8, 3, 0.5), low_rank(6, 8, 2, 1.5)])
    attached(program, 2, 1)
    assert (
        format_graph(program)
        == """\
%x : f32[1, T, 8] = input
%adapters : i64[T, 1] = input
%w_lora_B : f32[2, 6, 3] = weight
%w_lora_A : f32[2, 3, 8] = weight
%w : f32[6, 8] = weight
%h : f32[5, 6] = weight
%linear_1 : f32[1, T, 6] = gw.linear(%x, %w, None, None, activation="none")
%reshape_1 : f32[T, 8] = aten.reshape(%x, [-1, 8])
%routed_linear_1 : f32[T, 1, 3] = gw.routed_linear(%reshape_1, %adapters, %w_lora_A, optional=True)
%reshape_2 : f32[T, 1, 6] = aten.reshape(%linear_1, [-1, 1, 6])
%routed_linear_2 : f32[T, 1, 6] = gw.routed_linear(%routed_linear_1, %adapters, %w_lora_B, None, %reshape_2, optional=True)
%reshape_3 : f32[1, T, 6] = aten.reshape(%routed_linear_2, [1, -1, 6])
%relu_1 : f32[1, T, 6] = aten.relu(%reshape_3)
%linear_2 : f32[1, T, 5] = gw.linear(%relu_1, %h, None, None, activation="none")
return %linear_2
"""  # noqa: E501
    )


def test_a_sum_with_a_residual_stays_one() -> None:
    def function(x: Any, w: Any, h: Any) -> Any:
        return linear(add(x, linear(aten.relu.default(x), w)), h)

    program = build_program(function, x=rows(8), w=torch.rand(8, 8), h=torch.rand(5, 8))
    adapt(program, 1, w=[low_rank(8, 8, 2, 1.0)])
    attached(program, 1, 1)
    text = format_graph(program)
    assert "gw.linear(%relu_1, %w, None, %x, " in text and "aten.add" not in text


def test_the_memory_of_a_product_is_that_of_the_sum() -> None:
    """Also of several that are added to one after the other, but not of one that is read itself."""

    def function(x: Any, w: Any, v: Any, h: Any) -> Any:
        first = linear(x, w)
        return linear(aten.relu.default(add(linear(first, v), first)), h)

    w, v = (torch.rand(8, 8) for _ in range(2))
    program = build_program(function, x=rows(8), w=w, v=v, h=torch.rand(5, 8))
    adapt(program, 1, w=[low_rank(8, 8, 2, 1.0)], v=[low_rank(8, 8, 3, 1.0)])
    attached(program, 1, 2)
    products = [n for n in program.graph.nodes if n.target is torch.ops.gw.routed_linear.default]
    _, one, _, other = products
    for each in (one, other):
        own = in_place(each)
        assert own is not None and own.target is torch.ops.gw.linear.default
        assert [buffer_name(each)] == list(results(each)) == [own.name]
    assert own is not None
    with program.graph.inserting_after(other):
        program.graph.call_function(aten.relu.default, (own,))
    assert in_place(other) is None and list(results(other)) == [other.name]


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    st.lists(st.tuples(st.integers(1, 9), st.booleans()), min_size=2, max_size=4),
    st.integers(1, 3), st.integers(0, 10**6),
)  # fmt: skip
def test_merged_products_with_adapters_on_some_parts(
    parts: list[tuple[int, bool]], adapters: int, seed: int
) -> None:
    """Each adapter changes other parts, by other ranks."""
    torch.manual_seed(seed)

    def function(x: Any, h: Any, **weights: Any) -> Any:
        return linear(aten.cat.default([linear(x, w) for w in weights.values()], -1), h)

    names = ["l_q", "l_k", "l_v", "l_g"][: len(parts)]
    sizes = {name: size for name, (size, _) in zip(names, parts, strict=True)}
    namespace: dict[str, Any] = {"inner": function}
    exec(f"def made(x, h, {', '.join(names)}): "  # a function's own names are its parameters
         f"return inner(x, h, {', '.join(f'{n}={n}' for n in names)})", namespace)  # fmt: skip
    weights: dict[str, Any] = {name: torch.randn(size, 8) for name, size in sizes.items()}
    h = torch.randn(5, sum(sizes.values()))
    program = build_program(namespace["made"], x=rows(8), h=h, **weights)
    drawn = {
        name: [
            low_rank(size, 8, 1 + (seed + i + n) % 4, 0.7) if (seed >> (n + i)) % 3 else None
            for i in range(adapters)
        ]
        for n, (name, size) in enumerate(sizes.items())
        if parts[n][1]
    }
    adapt(program, adapters, **drawn)
    changed = [each for each in drawn.values() if any(each)]
    if changed:
        attached(program, adapters, 1, MergeProjections())
        a = next(w for name, w in program.weights.items() if name.endswith("_lora_A"))
        assert a.shape[1] == sum(max(c.rank for c in each if c) for each in changed)


def test_rows_in_another_order_and_factors() -> None:
    """Interleaved heads that were taken apart, and a scaled product."""

    def function(x: Any, w: Any, s: Any, h: Any) -> Any:
        heads = aten.reshape.default(linear(x, w), [1, -1, 2, 6])
        one, other = (
            aten.reshape.default(aten.slice.Tensor(heads, -1, i, i + 3), [1, -1, 6]) for i in (0, 3)
        )
        scaled = aten.div.Tensor(aten.mul.Tensor(linear(x, s), 3.0), 0.5)
        return linear(aten.cat.default([one, aten.relu.default(other), scaled], -1), h)

    program = build_program(
        function, x=rows(8), w=torch.randn(12, 8), s=torch.randn(4, 8), h=torch.randn(5, 16)
    )
    adapt(program, 2, w=[low_rank(12, 8, 3, 0.5), None], s=[None, low_rank(4, 8, 2, 1.5)])
    attached(program, 2, 1, FoldScales(), ReorderProjections(), MergeProjections())


def test_weights_that_lie_turned() -> None:
    def function(x: Any, w: Any, h: Any) -> Any:
        return linear(linear(x, w), h)

    program = build_program(function, x=rows(8), w=torch.rand(6, 8), h=torch.rand(5, 6))
    base = ConstantTensor.of(torch.randn(8, 6))
    leaf = AdaptedWeight(base.shape, base.dtype, base, (low_rank(6, 8, 3, 0.5),), turned=True)
    program.adapters = (Adapter("one", "", "", 1, (3, 3)),)
    program.weights["w"] = Expression.of(aten.permute.default, leaf, [1, 0])
    attached(program, 1, 1)


def stacks(dtype: torch.dtype, scale: float) -> list[Weight]:
    program = build_program(
        lambda x, w, h: linear(linear(x, w), h), x=rows(8), w=torch.rand(6, 8), h=torch.rand(5, 6)
    )
    adapt(program, 1, w=[low_rank(6, 8, 3, scale, dtype)])
    fire(program, AttachAdapters())
    return [program.weights[f"w_lora_{letter}"] for letter in "AB"]


def test_factors_keep_their_type_where_it_holds_the_scale() -> None:
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        assert [each.dtype for each in stacks(dtype, 2.0)] == [dtype, dtype]
        assert [each.dtype for each in stacks(dtype, 0.7)] == [dtype, torch.float32]
        assert {each.scheme for each in stacks(dtype, 2.0)} == {"adapters"}


def test_without_adapters_nothing_changes() -> None:
    program = build_program(lambda x, h: linear(x, h), x=rows(8), h=torch.rand(5, 8))
    before = format_graph(program)
    assert fire(program, AttachAdapters())[0] == [0]
    assert format_graph(program) == before


def test_what_else_reads_an_adapted_weight_is_refused() -> None:
    program = build_program(lambda x, w: aten.matmul.default(x, w), x=rows(8), w=torch.rand(8, 6))
    adapt(program, 1, w=[low_rank(8, 6, 2, 1.0)])
    with pytest.raises(PassError, match=r"reads the weight 'w', which an adapter changes.*--lora"):
        fire(program, AttachAdapters())


def test_an_adapted_weight_that_was_computed_with_is_refused() -> None:
    program = build_program(
        lambda x, w, h: linear(linear(x, w), h), x=rows(8), w=torch.rand(6, 8), h=torch.rand(5, 6)
    )
    adapt(program, 1, w=[low_rank(6, 8, 2, 1.0)])
    program.weights["w"] = Expression.of(aten.exp.default, program.weights["w"])
    with pytest.raises(PassError, match="by more than putting its rows in other places"):
        fire(program, AttachAdapters())
