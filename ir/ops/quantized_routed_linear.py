"""gw.quantized_routed_linear: routed products by integer weights."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from graphwright.ir.op import Sample, declare
from graphwright.ir.ops.quantized_linear import quantized_linear
from graphwright.ir.ops.routed_linear import rows_of_slots
from graphwright.ir.schemes import quantize_weight

__all__ = ["quantized_routed_linear"]


def _meta(x, experts, weight, scale, bias=None, zero=None, *, scheme):  # type: ignore[no-untyped-def]
    return x.new_empty((*experts.shape, weight.shape[1]))


def _samples() -> Iterator[Sample]:
    torch.manual_seed(0)
    for tokens, slots, count, n, k, scheme, per_slot, bias in (
        (1, 2, 4, 48, 64, "w8", False, False),
        (5, 3, 8, 33, 30, "w8", True, True),
        (7, 2, 4, 16, 64, "w8g32", False, True),
        (3, 1, 5, 20, 128, "w8g64", True, False),
        (40, 2, 3, 24, 32, "w8", False, False),
        (5, 2, 4, 33, 64, "w4g32", False, True),
        (3, 2, 4, 20, 128, "w4g128", True, False),
        (9, 2, 4, 16, 96, "w4g32z", False, True),
    ):
        weight, scale, *zero = quantize_weight(torch.randn(count * n, k) * k**-0.5, scheme)
        yield Sample(
            (
                torch.randn(tokens, slots, k) if per_slot else torch.randn(tokens, k),
                torch.randint(0, count, (tokens, slots)),
                weight.reshape(count, n, k),
                scale.reshape(count, n, -1),
                torch.randn(count, n) if bias else None,
                *(each.reshape(count, n, -1) for each in zero),
            ),
            {"scheme": scheme},
            f"{scheme}-{tokens}x{slots}x{count}x{n}x{k}",
        )


@declare(
    "quantized_routed_linear(Tensor x, Tensor experts, Tensor weight, Tensor scale, "
    "Tensor? bias=None, Tensor? zero=None, *, str scheme) -> Tensor",
    meta=_meta,
    samples=_samples,
)
def quantized_routed_linear(
    x: torch.Tensor,
    experts: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor | None = None,
    zero: torch.Tensor | None = None,
    *,
    scheme: str,
) -> torch.Tensor:
    """gw.quantized_linear of x[t, s] by the weight, scale and bias of experts[t, s].

    x float [T, K] or [T, S, K], quantized per row and group to int8; experts int64 [T, S], each
    in 0..E-1; weight int8 [E, N, K]; scale [E, N, groups]; bias [E, N]; zero uint8 [E, N, groups]
    -> [T, S, N].
    """
    rows = rows_of_slots(x, experts)
    y = rows.new_empty((*experts.shape, weight.shape[1]))
    for expert in experts.unique().tolist():
        routed = experts == expert
        added, points = (None if each is None else each[expert] for each in (bias, zero))
        y[routed] = quantized_linear.reference(
            rows[routed], weight[expert], scale[expert], added, None, points, scheme=scheme
        )
    return y
