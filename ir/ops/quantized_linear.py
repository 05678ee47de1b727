"""gw.quantized_linear: integer weights, activations quantized on the fly."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from graphwright.ir.op import Sample, declare
from graphwright.ir.ops.linear import epilogue
from graphwright.ir.schemes import quantize_activation, quantize_weight

__all__ = ["quantized_linear"]

_ELEMENTS_AT_ONCE = 1 << 18  # of the weight, in floating point: the temporaries stay in the cache
_EXACT = 1024  # products of two int8 values whose sum float32 holds exactly: 1024 * 127² < 2²⁴


def _meta(x, weight, scale, bias=None, residual=None, zero=None, *, scheme, activation="none"):  # type: ignore[no-untyped-def]
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


def _samples() -> Iterator[Sample]:
    torch.manual_seed(0)
    for rows, n, k, scheme, bias, residual, activation in (
        (1, 48, 64, "w8", False, False, "none"),
        (5, 33, 30, "w8", True, False, "gelu_tanh"),
        (7, 16, 64, "w8g32", True, True, "none"),
        (3, 20, 128, "w8g64", False, True, "silu"),
        (1, 40, 128, "w4g128", False, False, "none"),
        (5, 33, 96, "w4g32", True, False, "none"),
        (4, 16, 192, "w4g64", False, True, "none"),
        (6, 20, 96, "w4g32z", True, True, "silu"),
        (2, 18, 256, "w4g128z", False, False, "none"),
    ):
        weight, scale, *zero = quantize_weight(torch.randn(n, k) * k**-0.5, scheme)
        yield Sample(
            (
                torch.randn(rows, k),
                weight,
                scale,
                torch.randn(n) if bias else None,
                torch.randn(rows, n) if residual else None,
                *zero,
            ),
            {"scheme": scheme, "activation": activation},
            f"{scheme}-{rows}x{n}x{k}",
        )


@declare(
    "quantized_linear(Tensor x, Tensor weight, Tensor scale, Tensor? bias=None, "
    "Tensor? residual=None, Tensor? zero=None, *, str scheme, "
    'str activation="none") -> Tensor',
    meta=_meta,
    samples=_samples,
)
def quantized_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    zero: torch.Tensor | None = None,
    *,
    scheme: str,
    activation: str = "none",
) -> torch.Tensor:
    """activation(Σ_g (x_q · (weight_g - zero_g)ᵀ) * x_scale_g * scale_g + bias) + residual.

    x [..., K] float, quantized per token and group to int8; weight int8 [N, K]; scale float32 or
    float16 [N, groups]; zero uint8 [N, groups], 0 where there is none; integer sums are exact
    -> [..., N]. `scheme` as in graphwright.ir.schemes.
    """
    groups = scale.shape[1]
    x_q, x_scale = quantize_activation(x, groups)
    size = weight.shape[1] // groups
    dtype = torch.float32 if size <= _EXACT else torch.float64  # holds the integer sums exactly
    x_g = x_q.reshape(-1, groups, size).transpose(0, 1).to(dtype)  # [groups, rows, size]
    x_s = x_scale.reshape(-1, groups).T[:, :, None]
    y = x_scale.new_empty((x_g.shape[1], weight.shape[0]))
    step = max(1, _ELEMENTS_AT_ONCE // weight.shape[1])
    for begin in range(0, weight.shape[0], step):
        part = slice(begin, begin + step)
        w_g = weight[part].reshape(-1, groups, size).to(dtype)
        if zero is not None:
            w_g -= zero[part].to(dtype)[..., None]
        dots = torch.bmm(x_g, w_g.permute(1, 2, 0)).float()
        y[:, part] = (dots * x_s * scale[part].float().T[:, None]).sum(0)
    y = y.reshape(*x.shape[:-1], weight.shape[0])
    return epilogue(y, bias, residual, activation).to(x.dtype)
