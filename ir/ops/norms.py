"""gw.rms_norm, gw.layer_norm and their forms with the residual addition in front."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from graphwright.ir.op import Sample, declare

__all__ = ["add_layer_norm", "add_rms_norm", "layer_norm", "rms_norm"]


def _norm_meta(x, *_, eps):  # type: ignore[no-untyped-def]
    return torch.empty_like(x)


def _add_norm_meta(x, residual, *_, eps):  # type: ignore[no-untyped-def]
    return torch.empty_like(x), torch.empty_like(x)


def _samples(adds: bool, bias: bool) -> Callable[[], Iterator[Sample]]:
    def samples() -> Iterator[Sample]:
        torch.manual_seed(0)
        for shape, affine in (((5, 64), True), ((3, 4, 17), True), ((1, 40), False)):
            inputs = [torch.randn(shape) for _ in range(2 if adds else 1)]
            parameters = [torch.randn(shape[-1]) if affine else None for _ in range(1 + bias)]
            yield Sample((*inputs, *parameters), {"eps": 1e-5}, "x".join(map(str, shape)))

    return samples


@declare(
    "rms_norm(Tensor x, Tensor? weight, *, float eps) -> Tensor",
    meta=_norm_meta,
    samples=_samples(adds=False, bias=False),
)
def rms_norm(x: torch.Tensor, weight: torch.Tensor | None, *, eps: float) -> torch.Tensor:
    """x * rsqrt(mean(x²) + eps) * weight over the last axis. x [..., K], weight [K]."""
    y = x.float()
    y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + eps)
    return (y if weight is None else y * weight.float()).to(x.dtype)


@declare(
    "layer_norm(Tensor x, Tensor? weight, Tensor? bias, *, float eps) -> Tensor",
    meta=_norm_meta,
    samples=_samples(adds=False, bias=True),
)
def layer_norm(
    x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, *, eps: float
) -> torch.Tensor:
    """(x - mean) * rsqrt(var + eps) * weight + bias over the last axis. x [..., K] -> [..., K]."""
    scale, shift = (None if t is None else t.float() for t in (weight, bias))
    y = torch.nn.functional.layer_norm(x.float(), x.shape[-1:], scale, shift, eps)
    return y.to(x.dtype)


@declare(
    "add_rms_norm(Tensor x, Tensor residual, Tensor? weight, *, float eps) -> (Tensor, Tensor)",
    meta=_add_norm_meta,
    samples=_samples(adds=True, bias=False),
)
def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor | None, *, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(s, rms_norm(s, weight)) with s = x + residual. All [..., K] but weight [K]."""
    total = x + residual
    return total, rms_norm.reference(total, weight, eps=eps)


@declare(
    "add_layer_norm(Tensor x, Tensor residual, Tensor? weight, Tensor? bias, *, float eps) "
    "-> (Tensor, Tensor)",
    meta=_add_norm_meta,
    samples=_samples(adds=True, bias=True),
)
def add_layer_norm(
    x: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    *,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(s, layer_norm(s, weight, bias)), s = x + residual; [..., K] but weight and bias [K]."""
    total = x + residual
    return total, layer_norm.reference(total, weight, bias, eps=eps)
