"""Shapes and graphs of any kind under torch.compile: results are those of the model."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from compiled_models import (
    WIDTH,
    Function,
    Made,
    blocks,
    check_all_taken,
    check_same,
    fresh_dynamo,
    native,
    of,
    reports_of_test,
    rows,
)
from torch import nn

fresh = pytest.fixture(autouse=True)(fresh_dynamo)
made = pytest.fixture(reports_of_test)


# ---- shapes


def test_one_graph_for_every_number_of_rows(made: Made) -> None:
    model = blocks()
    compiled = native(model, dynamic=True, full=True, quant="f32")
    for count in (2, 5, 8, 9, 512, 513, 1030):
        check_same(compiled(x := rows(count, 3, WIDTH)), model(x))
    check_all_taken(made())
    assert len(made()) == 1


def test_many_rows_are_left_to_torch_where_the_weights_are_as_they_were() -> None:
    model = blocks(1)
    compiled = native(model, dynamic=True)
    for count in (2, 255, 256, 257, 600):
        check_same(compiled(x := rows(count, WIDTH)), model(x))


@pytest.mark.parametrize("shape", [(0, WIDTH), (2, 0, WIDTH), (1, WIDTH), (1, 1, WIDTH), (WIDTH,)])
def test_no_row_and_one_row(shape: tuple[int, ...]) -> None:
    model = blocks(1)
    for dynamic in (None, True):
        got, want = native(model, dynamic=dynamic)(x := rows(*shape)), model(x)
        assert got.shape == want.shape
        if got.numel():
            check_same(got, want)


STRIDED: dict[str, Callable[[], torch.Tensor]] = {
    "transposed": lambda: rows(WIDTH, 5).t(),
    "batch second": lambda: rows(5, 3, WIDTH).transpose(0, 1),
    "one row for all": lambda: rows(1, WIDTH).expand(4, WIDTH),
    "every second value": lambda: rows(3, 2 * WIDTH)[:, ::2],
    "unaligned": lambda: rows(4 * WIDTH + 1)[1:].view(4, WIDTH),
}


@pytest.mark.parametrize("case", STRIDED)
def test_rows_may_lie_anyhow(case: str) -> None:
    model, x = blocks(1), STRIDED[case]()
    check_same(native(model)(x), model(x))


# ---- graphs


def test_a_graph_break_in_the_middle(made: Made) -> None:
    def apply(self: Function, x: torch.Tensor) -> torch.Tensor:
        x = self.block(x)
        torch._dynamo.graph_break()
        made: torch.Tensor = self.block(2 * x)
        return made

    model, x = of(apply), rows(5, WIDTH)
    check_same(native(model)(x), model(x))
    assert len(made()) == 2
    check_all_taken(made())


def test_the_way_depends_on_a_value(made: Made) -> None:
    """The graphs of both ways, and the one before them."""

    def apply(self: Function, x: torch.Tensor) -> torch.Tensor:
        x = self.block(x)
        made: torch.Tensor = self.block(-x) if float(x.sum()) > 0 else self.block(x) + 1
        return made

    model = of(apply)
    compiled, first = native(model), rows(5, WIDTH)
    for x in (first, first - 9, first + 9):
        check_same(compiled(x), model(x))
    assert len(made()) >= 3
    check_all_taken(made())


def test_buffers_that_the_graph_writes() -> None:
    """`scale` is read by the part itself, before and after it changes."""

    def apply(self: Function, x: torch.Tensor) -> torch.Tensor:
        self.steps.add_(1)
        before = self.block(x * self.scale)
        self.scale.mul_(1.5).add_(self.steps)
        made: torch.Tensor = before + self.block(x * self.scale)
        return made

    ours, theirs = of(apply), of(apply)
    compiled = native(ours)
    for seed in range(4):
        check_same(compiled(x := rows(3, WIDTH, seed=seed)), theirs(x))
    assert torch.equal(ours.steps, theirs.steps) and torch.equal(ours.scale, theirs.scale)


def test_a_weight_that_the_graph_writes(made: Made) -> None:
    def apply(self: Function, x: torch.Tensor) -> torch.Tensor:
        self.block.up.weight.mul_(0.5)
        made: torch.Tensor = self.block(x)
        return made

    ours, theirs = of(apply), of(apply)
    compiled = native(ours)
    for _ in range(3):
        check_same(compiled(x := rows(3, WIDTH)), theirs(x))
    assert any("no weight" in why for why in made()[0].left)


def test_inputs_that_the_graph_writes() -> None:
    def apply(self: Function, x: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self.block(x)
        x.add_(made)
        return made

    model = of(apply)
    ours, theirs = rows(3, WIDTH), rows(3, WIDTH)
    check_same(native(model)(ours), model(theirs))
    check_same(ours, theirs)


def test_integer_inputs(made: Made) -> None:
    def apply(self: Function, ids: torch.Tensor, shift: int) -> torch.Tensor:
        made: torch.Tensor = self.block(self.table(ids + shift))
        return made

    model = of(apply)
    compiled = native(model)
    for shift in (0, 1, 2):
        check_same(compiled(x := torch.tensor([[3, 1, 4], [1, 5, 9]]), shift), model(x, shift))
    check_all_taken(made())


def test_a_graph_without_products(made: Made) -> None:
    def apply(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (x + y).relu() * 3

    x = rows(3, 5)
    assert torch.equal(native(apply)(x, x), apply(x, x))
    assert [(report.parts, report.products, report.left) for report in made()] == [(0, 0, [])]
    assert "0 run in 0 native parts" in str(made()[0])


def test_products_of_other_types_are_left_to_torch(made: Made) -> None:
    model, x = blocks(1).double(), rows(3, WIDTH).double()
    assert torch.equal(native(model)(x), model(x))
    assert set(made()[0].left) == {"it is torch.float64 on cpu"}


def test_outputs_that_are_views_or_inputs_or_come_twice() -> None:
    def apply(self: Function, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, ...]:
        h = self.block(x + y)
        return h, h, h.view(-1), x, x.view(-1), y[0], self.scale

    model, x = of(apply), rows(3, WIDTH)
    got, want = native(model)(x, x), model(x, x)
    for ours, theirs in zip(got, want, strict=True):
        assert ours.stride() == theirs.stride()
        assert torch.allclose(ours, theirs, atol=1e-5)
    assert got[0] is got[1] and got[3] is x and got[6] is model.scale
    assert got[2].data_ptr() == got[0].data_ptr()
    assert got[4].data_ptr() == got[5].data_ptr() == x.data_ptr()


def _halves(m: Function, x: torch.Tensor) -> torch.Tensor:
    left, right = m.block.up(x).chunk(2, -1)
    made: torch.Tensor = left * right.sigmoid()
    return made


def _heads(m: Function, x: torch.Tensor) -> torch.Tensor:
    heads = m.block.up(x).view(*x.shape[:-1], 4, 24).softmax(-2)
    made: torch.Tensor = m.block.down(heads.flatten(-2))
    return made


AROUND: dict[str, Callable[[Function, torch.Tensor], torch.Tensor]] = {
    "a factor of each row": lambda m, x: m.block.up(x * x.norm(dim=-1, keepdim=True)),
    "a feature as a factor": lambda m, x: m.block(x) * m.block.down(m.block.up(x))[..., -1:],
    "halves": _halves,
    "heads": _heads,
    "two products joined": lambda m, x: torch.cat([m.block.up(x), m.block.norm(x)], -1),
    "a product twice": lambda m, x: m.block(m.block(x)),
    "rows turned round": lambda m, x: m.block.down(m.block.up(x).flip(0)),
    "rows chosen": lambda m, x: m.block(m.block(x)[[1, 0, 1]]),
    "a row for all others": lambda m, x: m.block.up(x) + m.block.up(x[:1]),
    "the mean of all rows": lambda m, x: m.block.up(x) + m.block.up(x.mean(0, keepdim=True)),
    "a norm across rows": lambda m, x: m.block(m.block(x) / m.block(x).norm(dim=0)),
    "outer products": lambda m, x: m.block(x).unsqueeze(-1) * m.block(x).unsqueeze(-2),
    "a norm of two dimensions": lambda m, x: m.block.up(
        nn.functional.layer_norm(m.block(x), (4, WIDTH))
    ),
    "a row to a number": lambda m, x: m.block(x).sum(-1),
}


@pytest.mark.parametrize("case", AROUND)
def test_what_is_around_products(case: str, made: Made) -> None:
    model, x = of(AROUND[case]), rows(3, 4, WIDTH)
    check_same(native(model, dynamic=True)(x), model(x))
    check_all_taken(made())


def test_what_is_no_number_stays_in_its_row() -> None:
    model, x = blocks(), rows(4, WIDTH)
    x[1, 3], x[2] = torch.nan, torch.inf
    got, want = native(model)(x), model(x)
    assert torch.equal(got.isnan(), want.isnan())
    assert torch.allclose(got, want, atol=1e-5, equal_nan=True)


def test_several_outputs_of_a_part_lie_as_those_of_torch() -> None:
    """Code after the graph may count on their strides."""

    def apply(self: Function, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        up = self.block.up(self.block.norm(x))
        return self.block.down(up), up, up.view(*x.shape[:-1], 4, 24).transpose(1, 2)

    model, x = of(apply), rows(2, 5, WIDTH)
    got, want = native(model)(x), model(x)
    for ours, theirs in zip(got, want, strict=True):
        check_same(ours, theirs)
        assert ours.stride() == theirs.stride()
    got[0].view(-1)


ADDED: dict[str, Callable[..., torch.Tensor]] = {
    "one value": lambda m, x: torch.addmm(m.block.up.bias[:1], x, m.block.up.weight.t()),
    "the rows": lambda m, x: torch.addmm(x, x, m.block.up.weight[:64].t()),
    "a matrix": lambda m, x: torch.addmm(m.table.weight[:3], x, m.block.up.weight[:64].t()),
}


@pytest.mark.parametrize("case", ADDED)
def test_what_is_added_to_a_product(case: str) -> None:
    model, x = of(ADDED[case]), rows(3, WIDTH)
    check_same(native(model)(x), model(x))
