"""Weights stored as 16-bit floats: ``bf16`` and ``f16`` beside the schemes of integers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, TypeAlias

import torch

from graphwright.ir.errors import PassError
from graphwright.ir.schemes import Scheme

__all__ = ["AnyScheme", "FloatScheme", "narrow_weight"]


@dataclass(frozen=True)
class FloatScheme:
    """Weights in a 16-bit float, ``bf16`` or ``f16``; activations and sums stay float32."""

    NAMES: ClassVar[tuple[str, ...]] = ("bf16", "f16")

    name: str

    def __str__(self) -> str:
        return self.name

    @property
    def dtype(self) -> torch.dtype:
        """What the weights are stored as."""
        return torch.bfloat16 if self.name == "bf16" else torch.float16


AnyScheme: TypeAlias = Scheme | FloatScheme


def narrow_weight(weight: torch.Tensor, scheme: str) -> torch.Tensor:
    """`weight` as the 16-bit float of `scheme`, rounded to nearest, ties to even.

    Raises PassError when a finite weight becomes infinite, as float16 ends at 65504.
    """
    dtype = FloatScheme(scheme).dtype
    narrow = weight.to(dtype)
    if weight.device.type == "meta":
        return narrow
    overflowed = narrow.isinf() & weight.isfinite()
    if bool(overflowed.any()):
        most, limit = float(weight[overflowed].abs().max()), torch.finfo(dtype).max
        raise PassError(
            f"weights of up to {most:.6g} overflow {scheme}, which ends at {limit:.6g}: "
            "use another scheme for them (bf16 has the range of f32)."
        )
    return narrow
