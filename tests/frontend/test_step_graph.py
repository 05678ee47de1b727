"""Steps of random recurrences: captured, written as text, made smaller; the numbers stay."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from recurrent_models import WIDTH, Decoder, Items, Keeper, Mixer, check_capture, steps_of
from torch import Tensor, fx, nn
from torch.fx.experimental.proxy_tensor import make_fx

from graphwright.frontend.recurrent.shrink_repeats import shrink_repeats
from graphwright.frontend.recurrent.tidy_step import tidy_step
from graphwright.ir.ops.scan import scan_along_tokens
from graphwright.ir.scan_step import ScanState, ScanStep

aten = torch.ops.aten
SETTINGS = settings(
    deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow], database=None,
    phases=[Phase.generate],  # one example is a capture, which takes a second
)  # fmt: skip

# ---- random recurrences, captured


def by_sum(state: Tensor, key: Tensor) -> Tensor:
    return (state * key[..., None]).sum(-2)


def by_matmul(state: Tensor, key: Tensor) -> Tensor:
    return torch.matmul(key[..., None, :], state).squeeze(-2)


def by_bmm(state: Tensor, key: Tensor) -> Tensor:
    batch, heads, rows, columns = state.shape
    flat = torch.bmm(
        key.reshape(batch * heads, 1, rows), state.reshape(batch * heads, rows, columns)
    )
    return flat.reshape(batch, heads, columns)


def by_einsum(state: Tensor, key: Tensor) -> Tensor:
    return torch.einsum("bhk,bhkv->bhv", key, state)


PRODUCTS = (by_sum, by_matmul, by_bmm, by_einsum)
DECAYS: tuple[Callable[[Tensor], Tensor], ...] = (
    lambda g: g.sigmoid(),
    lambda g: torch.exp(-nn.functional.softplus(g)),
    lambda g: g.clamp(0.1, 0.9),
    lambda g: 0.5 + 0.4 * g.tanh(),
)
UPDATES = ("added", "delta", "normed", "maximum")


class Random(Mixer):
    """Heads with states [K, V], whose keys groups of heads may share; a window before them, or a
    second state beside them, as `draw` says."""

    def __init__(self, draw: dict[str, Any], index: int = 0) -> None:
        nn.Module.__init__(self)
        self.index, self.draw = index, draw
        self.heads = draw["groups"] * draw["repeats"]
        key, value = draw["key"], draw["value"]
        self.start = draw["start"]
        self.sizes = ((self.heads, value, key) if draw["turned"] else (self.heads, key, value),)
        if draw["window"]:
            self.sizes += ((WIDTH, draw["window"]),)
            self.taps = nn.Parameter(torch.zeros(WIDTH, draw["window"]))
        if draw["second"]:
            self.sizes += ((self.heads, key),)
        self.keys = nn.Linear(WIDTH, 2 * draw["groups"] * key)
        self.values = nn.Linear(WIDTH, self.heads * value)
        self.gates = nn.Linear(WIDTH, self.heads)
        self.base = nn.Parameter(torch.zeros(self.heads, key) if draw["wide"] else
                                 torch.zeros(self.heads, 1))  # fmt: skip
        self.up = nn.Linear(self.heads * value, WIDTH)

    def step(self, x: Tensor, *states: Tensor) -> Sequence[Tensor]:
        draw, (state, *others) = self.draw, states
        new: list[Tensor] = []
        if draw["window"]:
            window = torch.cat([others.pop(0)[..., 1:], x[..., None]], -1)
            x = nn.functional.silu((window * self.taps).sum(-1))
            new.append(window)
        key, query = self.keys(x).reshape(-1, 2, draw["groups"], draw["key"]).tanh().unbind(1)
        if draw["repeats"] > 1:
            if draw["interleaved"]:
                key = key.repeat_interleave(draw["repeats"], 1)
            else:
                shape = (-1, draw["groups"], draw["repeats"], draw["key"])
                key = key[:, :, None].expand(shape).reshape(-1, self.heads, draw["key"])
            query = query.repeat_interleave(draw["repeats"], 1)
        value = self.values(x).reshape(-1, self.heads, draw["value"])
        decay = DECAYS[draw["decay"]](self.gates(x)[..., None] + self.base)[..., None]
        if draw["turned"]:
            state = state.transpose(-1, -2)
        state = self.updated(state * decay, key, value)
        if draw["second"]:
            total = others[0] * decay[..., 0] + key.abs()
            new.append(total)
            query = query / (1.0 + total.abs())
        y = PRODUCTS[draw["product"]](state, query)
        if draw["turned"]:
            state = state.transpose(-1, -2)
        return self.up(y.flatten(1)), state, *new

    def updated(self, kept: Tensor, key: Tensor, value: Tensor) -> Tensor:
        update = UPDATES[self.draw["update"]]
        outer = key[..., None] * value[..., None, :]
        if update == "delta":
            return kept + key[..., None] * (value - by_sum(kept, key) * 0.1)[..., None, :]
        if update == "normed":
            return (kept + outer) / (1.0 + (kept * kept).mean((-1, -2), keepdim=True))
        return torch.maximum(kept, outer) if update == "maximum" else kept + outer


DRAWS = st.fixed_dictionaries({
    "groups": st.integers(1, 3), "repeats": st.integers(1, 3), "key": st.integers(1, 6),
    "value": st.integers(1, 5), "turned": st.booleans(), "window": st.sampled_from([0, 0, 2, 4]),
    "second": st.booleans(), "interleaved": st.booleans(), "wide": st.booleans(),
    "decay": st.integers(0, len(DECAYS) - 1), "product": st.integers(0, len(PRODUCTS) - 1),
    "update": st.integers(0, len(UPDATES) - 1), "start": st.sampled_from([0.0, 0.0, 0.75]),
})  # fmt: skip


def check_random(draw: dict[str, Any]) -> None:
    keeper = Items if draw["start"] else Keeper
    model = Decoder(lambda index: Random(draw, index), layers=1, keeper=keeper)
    program = check_capture(model, lengths=(1, 7))
    steps = steps_of(program)
    mixer: Any = model.layers[0].mixer
    assert sum(step.state_size for step in steps) == sum(map(math.prod, mixer.sizes))
    for step in steps:
        check_text(step)


@given(draw=DRAWS)
@settings(SETTINGS, max_examples=5)
def test_random_recurrences_equal_their_loops(draw: dict[str, Any]) -> None:
    check_random(draw)


@pytest.mark.slow
@given(draw=DRAWS)
@settings(SETTINGS, max_examples=200)
def test_many_random_recurrences_equal_their_loops(draw: dict[str, Any]) -> None:
    check_random(draw)


def check_text(step: ScanStep) -> None:
    """Parsed from its text it is the same text, of the same shapes, and gives the same numbers."""
    text = step.text()
    again = ScanStep.parse(text)
    assert again.text() == text
    assert (again.states, again.rows) == (step.states, step.rows)
    for mine, other in zip(step.graph.nodes, again.graph.nodes, strict=True):
        if mine.op != "output":
            assert mine.meta["val"].shape == other.meta["val"].shape
            assert mine.meta["val"].dtype == other.meta["val"].dtype
    rows, weights = inputs_of(step, 3)
    old = step.initial()
    for one, other in zip(step.run(old, rows, weights), again.run(old, rows, weights), strict=True):
        assert torch.equal(one, other)


def inputs_of(step: ScanStep, tokens: int) -> tuple[list[Tensor], list[Tensor]]:
    generator = torch.Generator().manual_seed(0)
    values = [node.meta["val"] for node in step.placeholders[len(step.states) :]]
    drawn = [torch.rand(value.shape, generator=generator) for value in values]
    rows = [row.expand(tokens, *row.shape[1:]).clone() for row in drawn[: step.rows]]
    return rows, drawn[step.rows :]


@pytest.mark.parametrize("number", [float("inf"), -float("inf"), 1e-30, 2**62, -1.0, True])
def test_numbers_of_all_kinds_survive_as_text(number: Any) -> None:
    def step(state: Tensor, x: Tensor) -> list[Tensor]:
        return [torch.where(x > number, state, x), torch.full_like(x, number) + state]

    made = step_of(step, [torch.zeros(1, 3)], [torch.zeros(1, 3)])
    check_text(made)
    assert (
        ScanStep.parse(made.text()).run(torch.ones(3), [torch.rand(2, 3)], [])[0].isfinite().all()
    )


def test_a_scan_needs_no_tokens() -> None:
    step = step_of(
        lambda state, x: [state + x, state * x], [torch.zeros(1, 3)], [torch.zeros(1, 3)]
    )
    state, results = step.run(torch.ones(3), [torch.zeros(0, 3)], [])
    assert torch.equal(state, torch.ones(3)) and results.shape == (0, 3)
    assert scan_along_tokens.reference([torch.zeros(0, 3)], [], step=step.text()).shape == (0, 3)


# ---- what is done to the graph of a step


def step_of(run: Callable[..., Any], states: list[Tensor], rows: list[Tensor]) -> ScanStep:
    graph = make_fx(run, tracing_mode="fake")(*states, *rows).graph
    held = tuple(ScanState(tuple(state.shape[1:])) for state in states)
    return ScanStep(_returning_tuple(graph), held, len(rows))


def _returning_tuple(graph: fx.Graph) -> fx.Graph:
    last = graph.output_node()
    found: Any = last.args[0]
    last.args = (tuple(found),)
    return graph


SIZES = (3, 1, 4)
POINTWISE: tuple[Callable[..., Tensor], ...] = (
    torch.mul, torch.add, torch.sub, torch.maximum,
    lambda a, b: torch.where(a > b, a, b + 1.0), lambda a, b: a.exp() * b.sigmoid(),
)  # fmt: skip


class Expression:
    """A random graph over [1, 3, 4, 5] of values that repeat along some axes."""

    sizes = (3, 4, 5)

    def __init__(self, moves: list[tuple[int, int, int, int]]) -> None:
        self.moves = moves

    def __call__(self, state: Tensor, *rows: Tensor) -> list[Tensor]:
        values = [state, *(row.expand(1, *self.sizes) for row in rows)]
        for kind, first, second, axis in self.moves:
            a, b = values[first % len(values)], values[second % len(values)]
            if kind < len(POINTWISE):
                values.append(POINTWISE[kind](a, b))
            elif kind == len(POINTWISE):
                values.append(a.sum(axis, keepdim=True).expand(a.shape) * 0.1)
            elif kind == len(POINTWISE) + 1:
                values.append(a.sum([axis]).unsqueeze(axis).expand(a.shape) * 0.1 + b)
            elif kind == len(POINTWISE) + 2:
                values.append(a.narrow(axis, 0, 1).expand(a.shape).sigmoid())
            elif kind == len(POINTWISE) + 3:
                values.append(a.narrow(axis, 1, 2).mean(axis, keepdim=True).expand(a.shape) + b)
            elif kind == len(POINTWISE) + 4:
                values.append(a.transpose(2, 3).reshape(a.shape).tanh())
            elif kind == len(POINTWISE) + 5:
                values.append(torch.cat([a.narrow(axis, 1, a.shape[axis] - 1),
                                         b.narrow(axis, 0, 1)], axis))  # fmt: skip
            else:
                values.append(a.softmax(axis) + a.amax(axis, keepdim=True))
        return [values[-1].tanh(), values[-1] + values[len(values) // 2]]


MOVES = st.lists(
    st.tuples(st.integers(0, len(POINTWISE) + 6), st.integers(0, 9), st.integers(0, 9),
              st.integers(1, 3)),
    min_size=1, max_size=9,
)  # fmt: skip
REPEATS = st.lists(st.tuples(st.booleans(), st.booleans(), st.booleans()), min_size=1, max_size=3)


@given(moves=MOVES, repeats=REPEATS)
@settings(SETTINGS, max_examples=60)
def test_a_graph_that_is_made_smaller_gives_the_same_numbers(
    moves: list[tuple[int, int, int, int]], repeats: list[tuple[bool, ...]]
) -> None:
    """Of rows that repeat along some axes: pointwise ops are computed once along these, moves that
    move nothing go, what is computed twice is computed once."""
    expression = Expression(moves)
    shapes = [[1, *(1 if one else size for one, size in zip(each, expression.sizes, strict=True))]
              for each in repeats]  # fmt: skip
    state = torch.zeros(1, *expression.sizes)
    step = step_of(expression, [state], [torch.zeros(shape) for shape in shapes])
    rows, _ = inputs_of(step, 3)
    old = torch.rand(step.state_size, generator=torch.Generator().manual_seed(1))
    want = step.run(old, rows, [])
    elements = _computed(step)
    shrink_repeats(step.graph)
    tidy_step(step.graph)
    step.graph.lint()
    for got, wanted in zip(step.run(old, rows, []), want, strict=True):
        torch.testing.assert_close(got, wanted, equal_nan=True)
    assert _computed(step) <= elements
    check_shapes(step)
    once = step.text()
    tidy_step(step.graph)
    assert step.text() == once


def _computed(step: ScanStep) -> int:
    """Elements that pointwise ops compute."""
    moves = {aten.expand.default, aten.reshape.default, aten.slice.Tensor}
    return sum(node.meta["val"].numel() for node in step.graph.nodes
               if node.op == "call_function" and node.target not in moves)  # fmt: skip


def check_shapes(step: ScanStep) -> None:
    """What the nodes say of their values is what they give."""
    again = ScanStep.parse(step.text())
    for mine, other in zip(step.graph.nodes, again.graph.nodes, strict=True):
        if mine.op != "output":
            assert mine.meta["val"].shape == other.meta["val"].shape, mine


def test_what_repeats_is_computed_once() -> None:
    def run(state: Tensor, gate: Tensor) -> list[Tensor]:
        new = state * gate.expand(1, 4, 5).neg().exp()
        return [new, new.sum([2])]

    step = step_of(run, [torch.zeros(1, 4, 5)], [torch.zeros(1, 4, 1)])
    shrink_repeats(step.graph)
    tidy_step(step.graph)
    sizes = {str(node.target): list(node.meta["val"].shape) for node in step.graph.nodes
             if node.op == "call_function"}  # fmt: skip
    assert sizes["aten.exp.default"] == [1, 4, 1] and sizes["aten.neg.default"] == [1, 4, 1]
    assert sizes["aten.mul.Tensor"] == [1, 4, 5]
