"""gw.linear: a matrix product with its epilogue."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from graphwright.ir.activations import activate
from graphwright.ir.op import Sample, declare

__all__ = ["epilogue", "linear"]


def epilogue(
    y: torch.Tensor, bias: torch.Tensor | None, residual: torch.Tensor | None, activation: str
) -> torch.Tensor:
    """activation(y + bias) + residual, in float32."""
    if bias is not None:
        y = y + bias.float()
    y = activate(y, activation)
    return y if residual is None else y + residual.float()


def _meta(x, weight, bias=None, residual=None, *, activation="none"):  # type: ignore[no-untyped-def]
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


def _samples() -> Iterator[Sample]:
    torch.manual_seed(0)
    for rows, n, k, bias, residual, activation in (
        (1, 48, 64, False, False, "none"),
        (5, 33, 17, True, False, "gelu_tanh"),
        (7, 16, 40, True, True, "none"),
        (3, 20, 24, False, True, "silu"),
    ):
        yield Sample(
            (
                torch.randn(rows, k),
                torch.randn(n, k) * k**-0.5,
                torch.randn(n) if bias else None,
                torch.randn(rows, n) if residual else None,
            ),
            {"activation": activation},
            f"{rows}x{n}x{k}",
        )
    for dtype in (torch.bfloat16, torch.float16):
        weight = (torch.randn(20, 33) * 33**-0.5).to(dtype)
        yield Sample((torch.randn(3, 33), weight), {}, f"weight {dtype}")


@declare(
    "linear(Tensor x, Tensor weight, Tensor? bias=None, Tensor? residual=None, *, "
    'str activation="none") -> Tensor',
    meta=_meta,
    samples=_samples,
)
def linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    *,
    activation: str = "none",
) -> torch.Tensor:
    """activation(x · weightᵀ + bias) + residual. x [..., K], weight [N, K] -> [..., N].

    The weight is converted to float32, and the sums are float32, whatever its dtype.
    """
    y = torch.nn.functional.linear(x.float(), weight.float())
    return epilogue(y, bias, residual, activation).to(x.dtype)
