"""Weights under torch.compile: that change, that layers do not share, in fewer bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from compiled_models import (
    ROUNDING,
    WIDTH,
    Block,
    Made,
    blocks,
    check_all_taken,
    check_same,
    error,
    fresh_dynamo,
    native,
    of,
    packed_regions,
    quiet,
    reports_of_test,
    rows,
    tokens,
)
from tiny_models import tiny_model
from torch import nn

from graphwright.passes.base import Exactness
from graphwright.passes.verification import promise_ratio

fresh = pytest.fixture(autouse=True)(fresh_dynamo)
made = pytest.fixture(reports_of_test)
regions = pytest.fixture(packed_regions)


def _double(model: Any) -> None:
    model[1].down.weight.mul_(-2)


def _load(model: Any) -> None:
    state = model.state_dict()
    model.load_state_dict({key: value.flip(0) for key, value in state.items()})


def _assign(model: Any) -> None:
    state = {key: value.flip(0) for key, value in model.state_dict().items()}
    model.load_state_dict(state, assign=True)


def _replace(model: Any) -> None:
    old = model[0].up.weight
    model[0].up.weight = nn.Parameter(old.flip(0), requires_grad=False)


def _in_inference_mode(model: Any) -> None:
    with torch.inference_mode():
        model[0].norm.bias.add_(1)


CHANGES = [_double, _load, _assign, _replace, _in_inference_mode]


def test_weights_that_change_between_calls() -> None:
    model = blocks()
    compiled, x = native(model), rows(5, WIDTH)
    compiled(x)
    for change in [None, *CHANGES]:
        before = model(x)
        if change is not None:
            change(model)
            assert error(before, model(x)) > 0.5, change
        for _ in range(2):
            check_same(compiled(x), model(x))


def test_quantized_weights_that_change_between_calls() -> None:
    model = blocks()
    compiled, x = native(model, quant="w8"), rows(5, WIDTH)
    compiled(x)
    for change in [None, *CHANGES]:
        if change is not None:
            change(model)
        for _ in range(2):
            assert promise_ratio(compiled(x), model(x), Exactness.APPROXIMATE) <= 0.5, change


def test_weights_that_change_at_every_call_are_left_to_torch(
    caplog: pytest.LogCaptureFixture, regions: list[int]
) -> None:
    model = blocks(1)
    compiled, x = native(model), rows(5, WIDTH)
    for _ in range(15):
        model[0].up.weight.mul_(1.1)  # type: ignore[index,union-attr,operator]
        check_same(compiled(x), model(x))
    assert len(regions) < 12
    found = [each.message for each in caplog.records if "weights changed" in each.message]
    assert len(found) == 1 and "torch computes with them now" in found[0]


def test_weights_replaced_by_data() -> None:
    """Writes to `.data` in place leave no trace; after a reset everything is packed anew."""
    model, x = blocks(1), rows(5, WIDTH)
    compiled, block = native(model), model.get_submodule("0")
    assert isinstance(block, Block)
    compiled(x)
    block.up.weight.data.mul_(2)
    torch._dynamo.reset()
    check_same(compiled(x), model(x))
    block.up.weight.data = block.up.weight.flip(0)
    check_same(compiled(x), model(x))


def test_two_models_of_one_kind_keep_their_weights_apart() -> None:
    models = [quiet(Block(), seed) for seed in range(2)]
    compiled, x = [native(model) for model in models], rows(5, WIDTH)
    for _ in range(2):
        for ours, theirs in zip(compiled, models, strict=True):
            check_same(ours(x), theirs(x))


def test_quantized_layers_that_are_alike_keep_their_weights_apart(made: Made) -> None:
    model = tiny_model("llama", num_layers=4).requires_grad_(False)
    given = tokens(2, 6)
    got = native(model, quant="w8")(given, use_cache=False).logits
    want = model(given, use_cache=False).logits
    assert promise_ratio(got, want, Exactness.APPROXIMATE) <= 1
    assert [(report.parts, report.kinds) for report in made()] == [(5, 3)]


def test_parts_alike_but_for_what_their_weights_are_made_of() -> None:
    """Slices of one weight; a weight as it is after one that is computed."""

    class Halves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(128, WIDTH))

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, ...]:
            linear = nn.functional.linear
            return linear(x, self.weight[:64]), linear(y, self.weight[64:])

    model = quiet(Halves())
    given = rows(3, WIDTH), rows(5, WIDTH)
    for ours, theirs in zip(native(model)(*given), model(*given), strict=True):
        check_same(ours, theirs)
    applied: list[Callable[..., torch.Tensor]] = [
        lambda self, x: x @ self.table.weight.softmax(0).t(),
        lambda self, x: x @ self.table.weight.t(),
    ]
    for apply in applied:
        torch._dynamo.reset()
        one, x = of(apply), rows(3, WIDTH)
        check_same(native(one)(x), one(x))


def test_int8_weights(regions: list[int], made: Made) -> None:
    """Less than a third of the memory, and results within what int8 is allowed."""
    model, x = blocks(2, 256, 512), rows(9, 256)
    floats = native(model)(x)
    torch._dynamo.reset()
    got = native(model, quant="w8", check=True)(x)
    check_same(floats, model(x))
    assert 0.001 < promise_ratio(got, model(x), Exactness.APPROXIMATE) <= 0.5
    matrices = 4 * 256 * 512
    assert 4 * matrices <= regions[0] and matrices <= regions[1] < regions[0] / 3
    check_all_taken(made())


def test_int4_weights(regions: list[int], made: Made) -> None:
    model, x = blocks(2, 256, 512), rows(9, 256)
    got = native(model, quant="w4g32", check=True)(x)
    assert 0.01 < promise_ratio(got, model(x), Exactness.COARSE) <= 0.5
    matrices = 4 * 256 * 512
    assert matrices / 2 <= regions[0] < matrices
    check_all_taken(made())


def test_a_recipe_that_names_weights(regions: list[int], made: Made) -> None:
    """In the language that the whole model has: the names are those of its parameters."""
    model, x = blocks(2, 256, 512), rows(9, 256)
    found = []
    for quant in ("w8", "w8:down=f32", "w8:0_(up|down)=f32,1_=f32"):
        torch._dynamo.reset()
        found.append(error(native(model, quant=quant)(x), model(x)))
    assert found[0] > 1.2 * found[1] and found[1] > ROUNDING >= found[2]
    matrices = 4 * 256 * 512
    assert regions[1] - regions[0] > matrices and regions[2] >= 4 * matrices
    check_all_taken(made())


def test_a_pattern_that_fits_some_parts_only(made: Made) -> None:
    model = tiny_model("llama", num_layers=2).requires_grad_(False)
    given = tokens(2, 6)
    want = model(given, use_cache=False).logits
    errors = []
    for quant in ("w8", "w8:down_proj=f32"):
        torch._dynamo.reset()
        errors.append(error(native(model, quant=quant)(given, use_cache=False).logits, want))
    check_all_taken(made())
    assert len(set(errors)) == 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype, made: Made) -> None:
    """Nearer to float32 than torch's own is, as a part rounds its results only."""
    model, x = blocks().to(dtype), rows(5, WIDTH).to(dtype)
    got, theirs = native(model)(x), model(x)
    want = model.float()(x.float())
    assert got.dtype == dtype
    assert error(got, want) <= error(theirs, want) + 1e-9
    assert error(got, want) <= 4 * torch.finfo(dtype).eps
    check_all_taken(made())


def test_autocast(made: Made) -> None:
    model, x = blocks(), rows(5, WIDTH)
    compiled, want = native(model), model(x)
    with torch.autocast("cpu", torch.bfloat16):
        got, theirs = compiled(x), model(x)
    assert got.dtype == theirs.dtype
    assert error(got, want) <= 2 * error(theirs, want)
    check_all_taken(made())
