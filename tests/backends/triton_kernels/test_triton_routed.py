"""The kernels of routed experts, in Triton's interpreter, against their ops."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from graphwright.ir.op import get_op
from graphwright.ir.ops.routed_linear import rows_of_slots
from graphwright.ir.schemes import dequantize, quantize_weight
from graphwright.ir.tolerance import check_close

triton = pytest.importorskip("triton")

from triton_harness import batch_header, call, untouched  # noqa: E402

from graphwright.backends.triton.kernels.linear import Tiles  # noqa: E402
from graphwright.backends.triton.kernels.quantize_rows import quantize_rows  # noqa: E402
from graphwright.backends.triton.kernels.routed_groups import routed_groups  # noqa: E402
from graphwright.backends.triton.kernels.routed_linear import (  # noqa: E402
    routed_linear,
    routed_tiles,
)
from graphwright.backends.triton.kernels.weight_format import (  # noqa: E402
    WeightFormat,
    pack_nibbles,
)


def grouped(experts: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    tokens, slots = experts.shape
    order = untouched((tokens * slots + 1,), torch.int32)
    starts = untouched((count + 2,), torch.int32)
    kernel = routed_groups(count, slots, experts_stride=slots)
    call(kernel, batch_header(tokens), experts, order, starts)
    assert order[-1] == 77 and starts[-1] == 77
    return order[:-1], starts[:-1]


@settings(max_examples=6, deadline=None)
@given(st.integers(1, 300), st.integers(1, 8), st.integers(1, 9), st.integers(0, 9))
def test_pairs_are_sorted_by_expert_in_their_order(
    tokens: int, slots: int, count: int, seed: int
) -> None:
    random = torch.Generator().manual_seed(seed)
    experts = torch.randint(0, count, (tokens, slots), generator=random)
    order, starts = grouped(experts, count)
    assert torch.equal(order.long(), torch.sort(experts.flatten(), stable=True).indices)
    counts = torch.bincount(experts.flatten(), minlength=count)
    assert torch.equal(starts.long(), torch.cat([torch.zeros(1), counts.cumsum(0)]).long())


@dataclass(frozen=True)
class Routed:
    tokens: int
    slots: int
    experts: int
    n: int
    k: int
    scheme: str | None = None
    shared: bool = True
    bias: bool = False
    integer: bool = False
    dtype: torch.dtype = torch.float32
    tiles: Tiles | None = None
    optional: bool = False
    residual: bool = False


CASES = [
    Routed(1, 2, 70, 20, 40),
    Routed(5, 3, 8, 33, 17, shared=False, bias=True),
    Routed(40, 2, 3, 24, 32, bias=True, dtype=torch.bfloat16),
    Routed(3, 2, 4, 20, 64, "w8"),
    Routed(3, 2, 4, 20, 64, "w8", shared=False, bias=True, integer=True),
    Routed(4, 2, 3, 20, 96, "w8g32", integer=True),
    Routed(4, 2, 3, 20, 160, "w4g32z", shared=False),
    Routed(4, 2, 3, 20, 256, "w4g128", integer=True, bias=True),
    Routed(70, 1, 2, 20, 128, "w4g64", dtype=torch.float16, tiles=Tiles(64, 64, 64)),
    Routed(1, 1, 1, 20, 40, optional=True),
    Routed(9, 1, 3, 70, 12, optional=True, residual=True, shared=False),
    Routed(33, 1, 2, 40, 16, optional=True, residual=True, dtype=torch.bfloat16),
    Routed(12, 2, 2, 12, 64, optional=True, dtype=torch.float16),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_routed_products_are_their_op_and_touch_no_other_expert(case: Routed) -> None:
    torch.manual_seed(0)
    tokens, slots, n, k = case.tokens, case.slots, case.n, case.k
    name = str(case.dtype).removeprefix("torch.")
    x = torch.randn(*((tokens, k) if case.shared else (tokens, slots, k))).to(case.dtype)
    kinds = case.experts + case.optional
    experts = torch.randint(0, kinds, (tokens, slots))
    if case.optional:
        experts[0, 0] = case.experts
    residual = torch.randn(tokens, slots, n).to(case.dtype) if case.residual else None
    weight = torch.randn(case.experts, n, k) * k**-0.5
    bias = torch.randn(case.experts, n) if case.bias else None
    unused = torch.bincount(experts.flatten(), minlength=kinds)[: case.experts] == 0
    if case.scheme is None:
        format = WeightFormat.dense(name)
        operands = [weight.to(case.dtype)]
        real = operands[0].clone()
        operands[0][unused] = torch.nan
    else:
        format = WeightFormat.of(case.scheme)
        values, *rest = quantize_weight(weight, case.scheme)
        packed = pack_nibbles(values, case.scheme) if format.kind == "w4" else values
        operands = [packed, rest[0].clone(), *rest[1:]]
        operands[1][unused] = torch.nan
        real = dequantize(values, *rest)
    inputs = [x]
    if case.integer:
        groups = operands[1].shape[2]
        inputs = [untouched(x.shape, torch.int8), untouched((*x.shape[:-1], groups))]
        per_row = 1 if case.shared else slots
        kernel = quantize_rows(k, x_stride=per_row * k, groups=groups, subrows=per_row, dtype=name)
        call(kernel, batch_header(tokens), x, *inputs)
    order, starts = grouped(experts, kinds)
    out = untouched((tokens + 1, slots, n), case.dtype)
    tiles = case.tiles or routed_tiles(tokens * slots, case.experts, k, format, name)
    kernel = routed_linear(
        kinds, slots, n, k, format, tiles, x_stride=x[0].numel(), shared=case.shared,
        integer=case.integer, bias=None if bias is None else "float32", dtype=name,
        optional=case.optional, residual=n if case.residual else None,
    )  # fmt: skip
    added = [each for each in (bias, residual) if each is not None]
    call(kernel, batch_header(tokens), order, starts, *inputs, *operands, *added, out)
    if case.integer and case.scheme is not None:
        rows = rows_of_slots(x, experts)
        want = torch.empty(tokens, slots, n)
        reference = get_op("quantized_linear").reference
        for t in range(tokens):
            for s, expert in enumerate(experts[t].tolist()):
                want[t, s] = reference(
                    rows[t, s], values[expert], rest[0][expert],
                    None if bias is None else bias[expert], None,
                    rest[1][expert] if format.zero else None, scheme=case.scheme,
                )  # fmt: skip
    else:
        want = get_op("routed_linear").reference(
            x, experts, real, bias, residual, optional=case.optional
        )
    check_close(out[:tokens], want.to(case.dtype))
    assert out[tokens].isnan().all()
