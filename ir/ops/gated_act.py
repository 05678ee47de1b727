"""gw.gated_act: the gate of a gated feed-forward layer."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from graphwright.ir.activations import activate
from graphwright.ir.op import Sample, declare

__all__ = ["gated_act"]


def _meta(gate, up, *, activation):  # type: ignore[no-untyped-def]
    return torch.empty_like(up, memory_format=torch.contiguous_format)


def _samples() -> Iterator[Sample]:
    torch.manual_seed(0)
    for shape, name in (((5, 32), "silu"), ((2, 3, 7), "gelu_tanh"), ((1, 48), "gelu")):
        merged = torch.randn(*shape[:-1], 2 * shape[-1])
        gate, up = merged.split(shape[-1], dim=-1)
        yield Sample((gate, up), {"activation": name}, name)


@declare(
    "gated_act(Tensor gate, Tensor up, *, str activation) -> Tensor",
    meta=_meta,
    samples=_samples,
)
def gated_act(gate: torch.Tensor, up: torch.Tensor, *, activation: str) -> torch.Tensor:
    """activation(gate) * up. Both [..., F] (often two halves of one merged product) -> [..., F]."""
    return (activate(gate.float(), activation) * up.float()).to(gate.dtype).contiguous()
