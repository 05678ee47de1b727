"""Writes in place become values: random programs compute what they did, or are left to torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import fx, nn

from graphwright.frontend.in_place_writes import CannotRewriteError, is_write, without_writes

aten: Any = torch.ops.aten
Step = tuple[str, int, int]
VIEWS: dict[str, Callable[[torch.Tensor, int], torch.Tensor]] = {
    "slice": lambda x, n: x[..., n % 2 : n % 2 + 2],
    "strided slice": lambda x, n: x[n % 2 :: 2],
    "entry": lambda x, n: x[..., n % 3] if x.dim() > 1 else x[:1],
    "axis": lambda x, n: x.unsqueeze(n % 2),
    "no axis": lambda x, n: x.squeeze(0),
    "turned": lambda x, n: x.transpose(0, -1),
    "flat": lambda x, n: x.reshape(-1),
    "typed": lambda x, n: x.to(torch.float32),
    "half": lambda x, n: x.chunk(2)[n % 2] if x.shape[0] > 1 else x,
}
WRITES: dict[str, Callable[[torch.Tensor, torch.Tensor, int], torch.Tensor]] = {
    "add": lambda x, y, n: x.add_(n),
    "mul": lambda x, y, n: x.mul_(0.5),
    "sum": lambda x, y, n: x.add_(y.sum()),
    "copy": lambda x, y, n: x.copy_(y.mean().expand(x.shape)),
    "fill": lambda x, y, n: x.fill_(float(n)),
    "zero": lambda x, y, n: x.zero_(),
    "mask": lambda x, y, n: x.masked_fill_(x > 0, float(n)),
}
STEPS = st.tuples(
    st.sampled_from([*VIEWS, *WRITES, *WRITES, "new"]), st.integers(0, 9), st.integers(0, 9)
)


class Program(nn.Module):
    """Steps over a growing list of tensors; returns all of them."""

    def __init__(self, steps: list[Step]) -> None:
        super().__init__()
        self.steps = steps

    def forward(self, given: torch.Tensor) -> list[torch.Tensor]:
        known = [given * 2]
        for name, which, number in self.steps:
            x, y = known[which % len(known)], known[number % len(known)]
            if name in VIEWS:
                known.append(VIEWS[name](x, number))
            elif name in WRITES:
                known.append(WRITES[name](x, y, number))
            else:
                known.append(x.sin() + 1)
        return [x + 0 for x in known]


def rewritten(module: nn.Module, given: torch.Tensor) -> fx.GraphModule:
    exported = torch.export.export(module, (given,), strict=False)
    value: Any = next(node for node in exported.graph.nodes if node.op == "placeholder").meta["val"]
    graph = without_writes(exported.graph, value.fake_mode)
    assert not any(is_write(node.target) for node in graph.nodes)
    graph.lint()
    for node in graph.nodes:
        assert node.op == "output" or "val" in node.meta
    return fx.GraphModule(exported.graph_module, graph)


@settings(max_examples=15, deadline=None)
@given(st.lists(STEPS, min_size=2, max_size=8))
def test_random_programs_keep_their_values(steps: list[Step]) -> None:
    module, given = Program(steps), torch.linspace(-1, 1, 12).reshape(3, 4)
    with torch.no_grad():
        want = module(given)
    try:
        graph = rewritten(module, given)
    except CannotRewriteError:
        assert {name for name, *_ in steps} & {"flat", "typed", "half"}
        return
    # what is laid out otherwise in memory is added up in another order
    for got, expected in zip(graph(given), want, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)


def test_parts_written_one_by_one_and_a_view_taken_before() -> None:
    class Parts(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            whole = x.new_empty(3, 4)
            left = whole[:, :2]
            whole[:, :2] = x[:, 2:]
            whole[:, 2:] = left * 3
            whole.div_(2.0)
            return left + whole[:, 2:]

    given = torch.arange(12.0).reshape(3, 4)
    graph = rewritten(Parts(), given)
    torch.testing.assert_close(graph(given)[0], Parts()(given))


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (lambda x: x.add_(1), "was given"),
        (lambda x: x[0].mul_(2), "was given"),
        (lambda x: x.sin().chunk(2)[0].add_(1), "writes through 'getitem'"),
        (lambda x: aten._foreach_add_.Scalar([x.sin()], 1), "writes to several tensors"),
        (lambda x: x.sin().view(2, 6).mul_(2), "writes through 'view'"),
        (lambda x: x.sin().bernoulli_(0.5), "is aten.bernoulli_.float"),
    ],
)
def test_other_writes_are_left_to_torch(
    write: Callable[[torch.Tensor], torch.Tensor], reason: str
) -> None:
    class Writes(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if (written := write(x)) is None else written

    with pytest.raises(CannotRewriteError, match=reason):
        rewritten(Writes(), torch.ones(3, 4))
