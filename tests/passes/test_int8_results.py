"""Which results are handed to integer products as int8, and where their int8 form lies."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from graphs import build_program, fire, rows
from torch import fx

from graphwright.ir import Level, Program
from graphwright.ir.int8_results import integer_reader
from graphwright.ir.memory import SHORT_ROW, steps
from graphwright.passes.plan_memory import PlanMemory

gw, aten = torch.ops.gw, torch.ops.aten
K = 64


def program(model: Any, width: int = K, **more: Any) -> Program:
    """`model` with x, an int8 weight `a` [64, width], and its scales of one and two groups."""
    return build_program(
        model, level=Level.QUANTIZED, x=rows(width),
        a=torch.randint(-127, 127, (64, width), dtype=torch.int8),
        one=torch.rand(64, 1), two=torch.rand(64, 2), **more,
    )  # fmt: skip


def product(y: Any, a: Any, scale: Any, residual: Any = None, scheme: str = "w8") -> Any:
    return gw.quantized_linear.default(y, a, scale, residual=residual, scheme=scheme)


def norm(x: Any) -> Any:
    return gw.rms_norm.default(x, None, eps=1e-6)


def read_by_two(x: Any, a: Any, one: Any, two: Any) -> Any:
    y = norm(x)
    return product(y, a, one, product(y, a, one))


def after_an_addition(x: Any, a: Any, one: Any, two: Any) -> Any:
    total, y = gw.add_layer_norm.default(x, x, None, None, eps=1e-6)
    return product(y, a, two, total, "w8g32")


def gated(x: Any, a: Any, one: Any, two: Any) -> Any:
    return product(gw.gated_act.default(x, x, activation="silu"), a, one)


def also_a_residual(x: Any, a: Any, one: Any, two: Any) -> Any:
    y = norm(x)
    return product(y, a, one, y)


def other_groups(x: Any, a: Any, one: Any, two: Any) -> Any:
    y = norm(x)
    return product(y, a, one, product(y, a, two, None, "w8g32"))


def also_an_activation(x: Any, a: Any, one: Any, two: Any) -> Any:
    y = norm(x)
    return product(y, a, one, gw.gated_act.default(y, x, activation="silu"))


def a_part_of_it(x: Any, a: Any, one: Any, two: Any) -> Any:
    y = norm(gw.gated_act.default(x, x, activation="silu"))
    return product(aten.slice.Tensor(y, 2, 0, K), a, one)


def the_sum(x: Any, a: Any, one: Any, two: Any) -> Any:
    total, y = gw.add_rms_norm.default(x, x, None, eps=1e-6)
    return product(total, a, one, y)


def readers(of: Program) -> list[fx.Node | None]:
    return [integer_reader(step) for step in steps(of.graph)]


@pytest.mark.parametrize("model", [read_by_two, after_an_addition, gated])
def test_the_first_of_the_products_is_found(model: Any) -> None:
    found = program(model)
    first = steps(found.graph)[1]
    assert first.target is gw.quantized_linear.default
    assert readers(found) == [first, *[None] * (len(steps(found.graph)) - 1)]


@pytest.mark.parametrize("model", [also_a_residual, other_groups, also_an_activation, the_sum])
def test_what_anything_else_reads_stays_float32(model: Any) -> None:
    assert not any(readers(program(model)))


def test_a_part_of_a_row_is_no_vector_of_the_product() -> None:
    found = build_program(
        a_part_of_it, level=Level.QUANTIZED, x=rows(2 * K), one=torch.rand(64, 1),
        a=torch.randint(-127, 127, (64, K), dtype=torch.int8), two=torch.rand(64, 2),
    )  # fmt: skip
    assert not any(readers(found))


@pytest.mark.parametrize(("width", "decode"), [(K, 0), (SHORT_ROW, 0), (SHORT_ROW + 64, 1)])
def test_the_int8_form_is_there_from_the_step_that_fills_it(width: int, decode: int) -> None:
    """Long rows of few tokens: the threads share them, so that the product's step quantizes."""
    found = program(gated, width)
    fire(found, PlanMemory())
    name = f"{steps(found.graph)[0].name}.int8g1"
    places = {entry: plan.buffer(name) for entry, plan in found.plans.items()}
    assert {entry: (each.first, each.last) for entry, each in places.items()} == {
        "decode": (decode, 1), "prefill": (0, 1),
    }  # fmt: skip
