"""Weights that are stored as integers: which schemes keep them, and that nothing is rounded."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from graphwright.ir import stored_codes
from graphwright.ir.schemes import Scheme, dequantize, quantize_weight
from graphwright.ir.stored_codes import from_codes, kept_parts, stored_scheme
from graphwright.ir.weights import ConstantTensor, Expression, Weight

aten = torch.ops.aten


def held(tensor: torch.Tensor) -> ConstantTensor:
    return ConstantTensor.of(tensor)


def stored(
    bits: int = 4,
    groups: int = 2,
    *,
    zero: int | None = None,
    scales: Any = torch.float16,
    index: torch.Tensor | None = None,
    seed: int = 0,
) -> Expression:
    """A weight [6, 256] of random codes; zero: the point of all groups, None: random ones."""
    generator = torch.Generator().manual_seed(seed)
    least = 1 if bits == 8 else 0  # -127
    codes = torch.randint(least, 2**bits, (6, 256), generator=generator).to(torch.uint8)
    scale = (torch.rand(6, groups, generator=generator) / 16 + 0.01).half().to(scales)
    points = torch.randint(0, 2**bits, (6, groups), generator=generator).to(torch.uint8)
    if zero is not None:
        points.fill_(zero)
    order = None if index is None else held(index)
    return Expression.of(from_codes, held(codes), held(scale), held(points), order, bits=bits)


def signed(bits: int = 8, least: int = -127) -> Expression:
    generator = torch.Generator().manual_seed(1)
    codes = torch.randint(least, 128, (6, 256), generator=generator).to(torch.int8)
    codes[0, 0] = least
    scale = torch.rand(6, 1, generator=generator).bfloat16()
    return Expression.of(from_codes, held(codes), held(scale), 0, bits=bits)


KEPT: dict[str, tuple[Weight, str]] = {
    "symmetric": (stored(zero=8), "w4g128"),
    "asymmetric": (stored(), "w4g128z"),
    "symmetric with zero points": (stored(zero=8), "w4g128z"),
    "in smaller groups": (stored(), "w4g32z"),
    "one group": (stored(groups=1, zero=8), "w4g64"),
    "scales of another type": (stored(zero=8, scales=torch.bfloat16), "w4g128"),
    "in order": (stored(index=torch.arange(256) // 128), "w4g128z"),
    "eight bits": (stored(8, 1, zero=128, scales=torch.float32), "w8"),
    "eight bits in groups": (stored(8, 2, zero=128), "w8g32"),
    "four bits in eight": (stored(zero=8), "w8g128"),
    "three bits in four": (stored(3, zero=4), "w4g128"),
}
NOT_KEPT: dict[str, tuple[Weight, str]] = {
    "larger groups": (stored(groups=4), "w4g128z"),
    "zero points": (stored(), "w4g128"),
    "fewer bits": (stored(8, 2, zero=128), "w4g128"),
    "other bits with zero points": (stored(3, zero=4), "w4g128z"),
    "inputs in another place": (
        Expression.of(aten.index.Tensor, stored(), [None, torch.arange(255, -1, -1)]), "w4g128z",
    ),
    "cut into shorter rows": (Expression.of(aten.reshape.default, stored(), [12, 128]), "w4g128z"),
    "a last dimension more": (Expression.of(aten.unsqueeze.default, stored(), -1), "w4g128z"),
    "rows and inputs turned": (
        Expression.of(aten.permute.default, stored(groups=1), [1, 0]), "w4g32z",
    ),
    "inputs by rows": (Expression.of(aten.transpose.int, stored(groups=1), 0, 1), "w4g32z"),
    "another order": (stored(index=torch.arange(256) % 2), "w4g128z"),
    "rows in groups": (stored(8, 2, zero=128), "w8"),
    "-128": (signed(least=-128), "w8"),
    "scaled": (Expression.of(aten.mul.Tensor, stored(zero=8), 3.0), "w4g128"),
    "inputs joined": (Expression.of(aten.cat.default, [stored(), stored()], 1), "w4g128z"),
    "turned": (Expression.of(aten.t.default, stored(groups=1)), "w4g32z"),
    "half of it floats": (
        Expression.of(aten.cat.default, [stored(), held(torch.randn(2, 256))]), "w4g128z",
    ),
    "floats": (held(torch.randn(6, 256)), "w4g128"),
}  # fmt: skip
KEPT["signed"] = (signed(), "w8")
pair = [stored(), stored(seed=1)]
KEPT["joined"] = (Expression.of(aten.cat.default, pair), "w4g128z")
KEPT["stacked"] = (Expression.of(aten.stack.default, pair), "w4g128z")
both = KEPT["stacked"][0]
KEPT["one of the stack"] = (Expression.of(aten.select.int, both, 0, 1), "w4g128z")
KEPT["rows of each"] = (Expression.of(aten.slice.Tensor, both, 1, 2, 5), "w4g128z")
KEPT["cut"] = (Expression.of(aten.split.Tensor, stored(), 4, output=1), "w4g128z")
order = torch.tensor([3, 1, 0])
KEPT["chosen"] = (Expression.of(aten.index_select.default, stored(), 0, order), "w4g128z")
halves = Expression.of(aten.reshape.default, stored(), [3, 2, 256])
turned = Expression.of(aten.transpose.int, halves, 0, 1)
KEPT["rows in another order"] = (
    Expression.of(aten.clone.default, Expression.of(aten.reshape.default, turned, [6, 256])),
    "w4g128z",
)
permuted = Expression.of(aten.permute.default, halves, [1, 0, 2])
KEPT["permuted"] = (Expression.of(aten.unsqueeze.default, permuted, 1), "w4g128z")
KEPT["by an index"] = (Expression.of(aten.index.Tensor, stored(), [order]), "w4g128z")


@pytest.mark.parametrize("case", KEPT)
def test_what_is_kept_is_exact(case: str) -> None:
    weight, scheme = KEPT[case]
    parts = kept_parts(weight, Scheme.parse(scheme))
    assert parts is not None
    values = [part.load() for part in parts]
    wanted = quantize_weight(weight.load(), scheme)
    assert [(v.shape, v.dtype) for v in values] == [(w.shape, w.dtype) for w in wanted]
    least, most = Scheme.parse(scheme).range
    assert least <= int(values[0].min()) <= int(values[0].max()) <= most
    assert torch.equal(dequantize(*values), weight.load())


@pytest.mark.parametrize("case", NOT_KEPT)
def test_what_does_not_fit_is_not_kept(case: str) -> None:
    weight, scheme = NOT_KEPT[case]
    assert kept_parts(weight, Scheme.parse(scheme)) is None


def test_scales_beyond_float16_are_not_kept() -> None:
    weight = stored(zero=8, scales=torch.float32)
    codes, scale, *more = weight.args
    for factor in (1e-6, 1e6):  # fewer bits than the scale has; infinity
        scaled = held(scale.load() * factor)
        other = Expression.of(from_codes, codes, scaled, *more, bits=4)
        assert kept_parts(other, Scheme.parse("w4g128")) is None


@pytest.mark.parametrize(
    ("weight", "text"),
    [
        (stored(zero=8), "w4g128"),
        (stored(groups=4), "w4g64z"),
        (signed(), "w8"),
        (KEPT["joined"][0], "w4g128z"),
        (NOT_KEPT["another order"][0], "w4g128z in an order of its own"),
        (held(torch.zeros(2, 2)), None),
    ],
)
def test_how_it_is_stored(weight: Weight, text: str | None) -> None:
    assert stored_scheme(weight) == text


def test_groups_of_an_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored_codes, "_ELEMENTS_AT_ONCE", 8)  # two rows, then one
    index = torch.tensor([1, 0, 1, 0])
    codes = torch.tensor([[1, 2, 3, 4], [0, 0, 0, 0], [4, 3, 2, 1]], dtype=torch.uint8)
    scale = torch.tensor([[10.0, 100.0], [1.0, 2.0], [5.0, 7.0]])
    zero = torch.tensor([[1, 2], [3, 4], [1, 0]], dtype=torch.uint8)
    got = from_codes(codes, scale, zero, index, bits=4)
    assert got.tolist() == [[-100, 10, 100, 30], [-8, -3, -8, -3], [28, 10, 14, 0]]
    assert from_codes(codes, scale, 2, index, bits=4)[2].tolist() == [14, 5, 0, -5]
