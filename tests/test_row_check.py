"""Checking passes over a row part by numbers: equal programs pass, changed results do not."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

from graphwright.frontend.row_parts.find import find_row_parts
from graphwright.frontend.row_parts.program import part_program
from graphwright.ir.errors import PassError
from graphwright.ir.program import Program
from graphwright.passes.base import Exactness
from graphwright.passes.row_check import RowCheck

INPUTS, OUTPUTS = 12, 8

Part = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def part(function: Part, seed: int = 0) -> Program:
    """`function` of rows [T, INPUTS] and a weight [OUTPUTS, INPUTS] as a program."""
    weight = torch.randn(OUTPUTS, INPUTS, generator=torch.Generator().manual_seed(seed))
    mode = FakeTensorMode(shape_env=ShapeEnv(), static_shapes=False)
    kinds = [DimDynamic.DYNAMIC, DimDynamic.STATIC], [DimDynamic.STATIC] * 2
    given = [
        mode.from_tensor(each, symbolic_context=StatelessSymbolicContext(dynamic_sizes=kind))
        for each, kind in zip((torch.randn(5, INPUTS), weight), kinds, strict=True)
    ]
    module = make_fx(function, tracing_mode="symbolic")(*given)
    placeholders = module.graph.find_nodes(op="placeholder")
    found = find_row_parts(module.graph, placeholders[1:])
    (only,) = found.parts
    program, tensors, sources = part_program(only, found, {})
    assert sources == placeholders[1:]
    tensors.values = [weight]
    return program


def plain(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return torch.relu(x @ weight.t()) * 2


def twice(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    y = torch.relu(x @ weight.t())
    return y + y


def bent(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return torch.relu(x @ weight.t()) * 2.002


def without_relu(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return (x @ weight.t()) * 2


def checked(before: Program, after: Program, exactness: Exactness) -> float:
    check = RowCheck(INPUTS)
    check.remember(before)
    return check.compare(after, exactness)


@pytest.mark.parametrize("exactness", [each for each in Exactness if each is not Exactness.ASKED])
def test_equal_programs_pass(exactness: Exactness) -> None:
    assert checked(part(plain), part(twice), exactness) <= 1e-3


def test_a_changed_result_is_refused_with_its_size() -> None:
    sentence = r"the pass changed rows of random numbers by (.+) times what 'exact' allows\."
    with pytest.raises(PassError, match=sentence) as refused:
        checked(part(plain), part(bent), Exactness.EXACT)
    found = re.fullmatch(sentence, str(refused.value))
    assert found is not None and 100 < float(found[1]) < 1000


def test_what_approximates_may_change_a_little() -> None:
    assert 0 < checked(part(plain), part(bent), Exactness.APPROXIMATE) < 0.1
    for program in (part(without_relu), part(plain, seed=1)):
        with pytest.raises(PassError, match="times what 'approximate' allows"):
            checked(part(plain), program, Exactness.APPROXIMATE)


def test_no_number_is_refused() -> None:
    broken = part(lambda x, weight: (x @ weight.t()) * float("nan"))
    with pytest.raises(PassError, match="by inf times what 'coarse' allows"):
        checked(part(plain), broken, Exactness.COARSE)


def test_results_of_another_width_are_refused() -> None:
    narrow = part(lambda x, weight: torch.relu(x @ weight[1:].t()) * 2)
    with pytest.raises(PassError, match=r"shapes differ: got \(1, 7\), expected \(1, 8\)"):
        checked(part(plain), narrow, Exactness.REASSOCIATING)


def test_each_program_is_compared_with_the_one_before() -> None:
    check = RowCheck(INPUTS)
    check.remember(part(plain))
    assert check.compare(part(bent), Exactness.APPROXIMATE) > 0
    assert check.compare(part(bent), Exactness.EXACT) == 0
    with pytest.raises(PassError):
        check.compare(part(plain), Exactness.EXACT)
