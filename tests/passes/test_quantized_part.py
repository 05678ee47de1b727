"""Results of a quantization: computed once for two rounds of readers, within a budget of memory."""

from __future__ import annotations

import pytest
import torch

from graphwright.ir.schemes import quantize_weight
from graphwright.ir.weights import ConstantTensor
from graphwright.passes.quantized_part import KeptBytes, QuantizedPart


class Counting(ConstantTensor):
    """A weight that counts how often it is loaded."""

    loads = 0

    def load(self) -> torch.Tensor:
        Counting.loads += 1
        return super().load()


def counting(*shape: int) -> Counting:
    Counting.loads = 0
    generator = torch.Generator().manual_seed(sum(shape))
    return Counting(shape, torch.float32, torch.randn(*shape, generator=generator))


def check_round(parts: list[QuantizedPart], weight: Counting, scheme: str) -> None:
    for part, wanted in zip(parts, quantize_weight(weight.tensor, scheme), strict=True):
        got = part.load()
        assert (got.dtype, got.shape) == (part.dtype, part.shape)
        assert torch.equal(got, wanted)


@pytest.mark.parametrize("scheme", ["w8", "w8g32", "w4g32", "w4g64", "w4g32z"])
@pytest.mark.parametrize("shape", [(5, 64), (3, 7, 128), (1, 192)])
def test_two_rounds_compute_once(scheme: str, shape: tuple[int, ...]) -> None:
    weight = counting(*shape)
    parts = QuantizedPart.all_of(weight, scheme, KeptBytes())
    for loads in (1, 1, 2, 2):
        check_round(parts, weight, scheme)
        assert Counting.loads == loads


def test_what_the_budget_does_not_hold_is_computed_again() -> None:
    weight = counting(4, 64)
    memory = KeptBytes(4 * 64 // 2 + 4 * 2 * 2)  # packed values and float16 scales of one weight
    first = QuantizedPart.all_of(weight, "w4g32", memory)
    second = QuantizedPart.all_of(weight, "w4g32", memory)
    for parts in (first, second):
        check_round(parts, weight, "w4g32")
    assert Counting.loads == 2
    check_round(first, weight, "w4g32")
    assert Counting.loads == 2  # kept; now the budget is free for the second
    check_round(second, weight, "w4g32")
    assert Counting.loads == 3
    check_round(second, weight, "w4g32")
    assert Counting.loads == 3


@pytest.mark.parametrize("scheme", ["w8", "w4g32", "w4g32z"])
def test_stored_parts_take_the_place_of_rounding(scheme: str) -> None:
    weight = counting(4, 64)
    values = quantize_weight(torch.randn(4, 64), scheme)
    stored = [ConstantTensor.of(value) for value in values]
    parts = QuantizedPart.all_of(weight, scheme, KeptBytes(), stored)
    for _ in range(3):
        for part, wanted in zip(parts, values, strict=True):
            assert (part.shape, part.dtype) == (wanted.shape, wanted.dtype)
            assert torch.equal(part.load(), wanted)
    assert Counting.loads == 0
    assert parts[0].describe().startswith("stored_for_quantize_weight")
