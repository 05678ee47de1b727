"""The program of a part computes what torch computes, and the graph with calls in it does too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from test_row_parts import SIZE, WIDTH, Between, found_in, hidden, trace, traced
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

from graphwright.frontend.row_parts.find import Found, RowPart, find_row_parts
from graphwright.frontend.row_parts.forms import (
    PRODUCTS,
    Form,
)
from graphwright.frontend.row_parts.program import part_program
from graphwright.frontend.row_parts.replace import PartCall, part_module, replace_parts
from graphwright.ir.interpreter import Interpreter
from graphwright.ir.printer import format_graph
from graphwright.ir.tolerance import check_close
from graphwright.passes.token_axis import find_token_axes

aten = torch.ops.aten


class Recorder(fx.Interpreter):
    """Runs a graph and keeps every value."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.values: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        self.values[n] = super().run_node(n)
        return self.values[n]


def table(values: Sequence[Tensor], forms: Sequence[Form]) -> Tensor:
    """The rows of all values side by side."""
    rows = []
    for value, form in zip(values, forms, strict=True):
        lead, features = form.lead, form.features(value)
        turned = value.permute(*lead, *features)
        rows.append(turned.flatten(len(lead)) if features else turned[..., None])
    return torch.cat([each.reshape(-1, each.shape[-1]) for each in rows], 1)


def check_parts(module: fx.GraphModule, found: Found, arguments: Sequence[Any]) -> None:
    """Each part's program against torch on the rows that it gets in `module`, and the calls."""
    recorder = Recorder(module)
    with torch.no_grad():
        want = recorder.run(*arguments)
    calls = [check_program(module, part, found, recorder.values) for part in found.parts]
    replaced = replace_parts(module, calls)
    left = [node.target for node in replaced.graph.nodes]
    assert all(left.count(call.run) == 1 for call in calls)
    with torch.no_grad():
        got = replaced(*arguments)
    assert len(got) == len(want) and all(map(torch.equal, got, want))


def check_program(
    module: fx.GraphModule, part: RowPart, found: Found, values: dict[fx.Node, Any]
) -> PartCall:
    program, tensors, sources = part_program(part, found, {})
    find_token_axes(program)
    tensors.values = [values[node] for node in sources]
    inner = part_module(module, part, sources)

    def run(*given: Any) -> tuple[Tensor, ...]:
        with torch.no_grad():
            outputs: tuple[Tensor, ...] = inner(*given)
        return outputs

    inputs = [values[node] for node, _ in part.inputs]
    want = run(*inputs, *tensors.values, *(values[node] for node in part.numbers))
    assert all(torch.equal(w, values[n]) for w, n in zip(want, part.outputs, strict=True))
    rows = table(inputs, [form for _, form in part.inputs])
    got = Interpreter(program).run({"tokens": rows})
    check_close(got, table(want, [found.forms[node] for node in part.outputs]))
    return PartCall(part, sources, run)


@pytest.mark.parametrize("kind", ["rotated", "normed", "plain"])
@pytest.mark.parametrize(("batch", "length"), [(1, 1), (1, 3), (2, 3)])
def test_parts_compute_what_torch_does(kind: str, batch: int, length: int) -> None:
    one = traced(kind, batch, length)
    angles = [hidden(length, SIZE, seed=2)] if kind == "rotated" else []
    check_parts(
        one.module, found_in(one), one.arguments(hidden(batch, length, WIDTH, seed=3), *angles)
    )


@pytest.mark.parametrize("kind", ["rotated", "normed", "plain"])
def test_a_graph_with_symbolic_sizes_serves_any_number_of_rows(kind: str) -> None:
    one = traced(kind, 2, 3, True)
    found = found_in(one)
    for batch, length in ((2, 3), (3, 5), (7, 2)):
        angles = [hidden(length, SIZE, seed=2)] if kind == "rotated" else []
        check_parts(one.module, found, one.arguments(hidden(batch, length, WIDTH, seed=4), *angles))


class Waits(nn.Module):
    """Rows that wait for a sum over other rows, and another sum that waits for them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (nn.Linear(WIDTH, WIDTH) for _ in range(2))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.first(x).relu()
        early = h.cumsum(0)
        y = self.second(h * x.cumsum(0))
        return self.first(y.cumsum(0) + early) + self.second(y), early


def test_calls_come_after_what_they_wait_for() -> None:
    one = trace(Waits(), hidden(5, WIDTH))
    found = found_in(one)
    assert [sum(n.target in PRODUCTS for n in part.nodes) for part in found.parts] == [3, 1]
    first = found.parts[0]
    order = {node: place for place, node in enumerate(one.module.graph.nodes)}
    assert max(order[node] for node, _ in first.inputs) > order[first.nodes[0]]
    check_parts(one.module, found, one.arguments(hidden(5, WIDTH, seed=1)))


def test_sixteen_bit_weights_are_read_as_float32() -> None:
    one = trace(Between(F.relu).bfloat16(), hidden(5, WIDTH).bfloat16())
    (part,) = found_in(one).parts
    program, tensors, sources = part_program(part, found_in(one), {one.weights[0]: "up"})
    assert "%up : f32[8, 8] = weight" in format_graph(program)
    given = one.arguments(hidden(5, WIDTH, seed=1).bfloat16())
    values = dict(zip(one.module.graph.find_nodes(op="placeholder"), given, strict=True))
    tensors.values = [values[node] for node in sources]
    ((rows, _),) = part.inputs
    got = Interpreter(program).run({"tokens": values[rows].float()})
    assert got.dtype == torch.float32
    with torch.no_grad():
        check_close(got.bfloat16(), one.module(*given)[0])


def test_the_program_of_a_part_as_text() -> None:
    found = found_in(traced("rotated", 2, 3))
    assert format_graph(part_program(found.parts[-1], found, {})[0]) == LAST_PART


LAST_PART = """\
%tokens : f32[T, 16] = input
%weight_4 : f32[8, 12] = weight
%weight_3 : f32[12, 8] = weight
%weight_2 : f32[12, 8] = weight
%weight_1 : f32[8] = weight
%weight_0 : f32[8, 8] = weight
%slice_1 : f32[T, 8] = aten.slice.Tensor(%tokens, 1, 0, 8)
%slice_2 : f32[T, 8] = aten.slice.Tensor(%tokens, 1, 8, 16)
%linear_1 : f32[T, 8] = aten.linear(%slice_1, %weight_0)
%add_1 : f32[T, 8] = aten.add.Tensor(%slice_2, %linear_1)
%pow_1 : f32[T, 8] = aten.pow.Tensor_Scalar(%add_1, 2)
%mean_1 : f32[T, 1] = aten.mean.dim(%pow_1, [1], True)
%add_2 : f32[T, 1] = aten.add.Tensor(%mean_1, 1e-05)
%rsqrt_1 : f32[T, 1] = aten.rsqrt(%add_2)
%mul_1 : f32[T, 8] = aten.mul.Tensor(%add_1, %rsqrt_1)
%mul_2 : f32[T, 8] = aten.mul.Tensor(%mul_1, %weight_1)
%linear_2 : f32[T, 12] = aten.linear(%mul_2, %weight_2)
%silu_1 : f32[T, 12] = aten.silu(%linear_2)
%linear_3 : f32[T, 12] = aten.linear(%mul_2, %weight_3)
%mul_3 : f32[T, 12] = aten.mul.Tensor(%silu_1, %linear_3)
%linear_4 : f32[T, 8] = aten.linear(%mul_3, %weight_4)
%add_3 : f32[T, 8] = aten.add.Tensor(%add_1, %linear_4)
return %add_3
"""


# ---- random graphs


def weighted(x: Tensor, number: int, matrix: Tensor, scale: Tensor) -> Tensor:
    return F.linear(x, matrix[:, : x.shape[-1]], scale[:8] if number % 2 else None)


def heads(x: Tensor) -> Tensor:
    count = 1 + (x.shape[-1] % 2 == 0)
    apart = x.reshape(*x.shape[:2], count, -1).transpose(1, 2)
    return (apart * apart.amax(-1, True)).transpose(1, 2).reshape(x.shape).tanh()


def rms_norm(x: Tensor, y: Tensor, number: int, scale: Tensor) -> Tensor:
    return x * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 0.1) * scale[: x.shape[-1]]


# Of two values [B, S, …], a number, a matrix [8, 16] and a scale [17]; the last four are not all
# known to keep rows apart.
STEPS: dict[str, Any] = {
    "add": lambda x, y, n, m, s: x + 0.5 * (y if x.shape == y.shape else y[..., :1]),
    "cat": lambda x, y, n, m, s: torch.cat([x, y], -1)[..., -16:],
    "select": lambda x, y, n, m, s: x * y.select(-1, n % y.shape[-1]).sigmoid().unsqueeze(-1),
    "heads": lambda x, y, n, m, s: heads(x),
    "largest": lambda x, y, n, m, s: (x - x.amax(-1, True)).exp(),
    "linear": lambda x, y, n, m, s: weighted(x, n, m, s),
    "norm": lambda x, y, n, m, s: F.layer_norm(x, x.shape[-1:], s[: x.shape[-1]], None, 0.1),
    "rms norm": lambda x, y, n, m, s: rms_norm(x, y, n, s),
    "silu": lambda x, y, n, m, s: F.silu(x) * y.mean(-1, keepdim=True),
    "slice": lambda x, y, n, m, s: x[..., n % x.shape[-1] :],
    "turn": lambda x, y, n, m, s: x.unflatten(-1, (-1, 2 - x.shape[-1] % 2)).mT.flatten(-2).sin(),
    "of the first row": lambda x, y, n, m, s: x * y[:1, :, :1].tanh(),
    "rows turned": lambda x, y, n, m, s: x.transpose(0, 1).tanh().transpose(0, 1),
    "running sum": lambda x, y, n, m, s: x.cumsum(1).tanh(),
    "where": lambda x, y, n, m, s: torch.where(x > 0, x, y[..., :1]),
}
CALLS = st.tuples(st.sampled_from(sorted(STEPS)), *(st.integers(0, 9) for _ in range(3)))


@settings(deadline=None, max_examples=20)
@given(st.lists(CALLS, min_size=2, max_size=6), st.booleans(), st.integers(2, 4))
def test_random_graphs_compute_what_torch_does(
    calls: list[tuple[str, int, int, int]], symbolic: bool, batch: int
) -> None:
    def function(x: Tensor, matrix: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        values = [x, weighted(x, 1, matrix, scale)]
        for name, first, second, number in calls:
            x, y = values[-1 - first % 2], values[second % len(values)]
            values.append(STEPS[name](x, y, number, matrix, scale))
        return weighted(values[-1], 0, matrix, scale), values[-2]

    mode = FakeTensorMode(shape_env=ShapeEnv(), static_shapes=False)
    kind = DimDynamic.DYNAMIC if symbolic else DimDynamic.STATIC
    context: Any = StatelessSymbolicContext(dynamic_sizes=[kind, kind, DimDynamic.STATIC])
    weights = [hidden(8, 16, seed=5) / 3, hidden(17, seed=6)]
    x = hidden(batch, 3, WIDTH, seed=7)
    static = [mode.from_tensor(each, static_shapes=True) for each in weights]
    module = make_fx(function)(mode.from_tensor(x, symbolic_context=context), *static)
    module.graph.eliminate_dead_code()
    _, *placeholders = module.graph.find_nodes(op="placeholder")
    found = find_row_parts(module.graph, placeholders)
    assert found.parts
    check_parts(module, found, [x, *weights])
