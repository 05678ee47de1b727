"""Weight quantization schemes by name, e.g. ``w8`` and ``w8g32``: parameters and meaning."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import torch

from graphwright.ir.errors import PassError

__all__ = ["Scheme", "quantize_activation", "quantize_weight"]


@dataclass(frozen=True)
class Scheme:
    """Symmetric integer weights of `bits` bits; a scale per output channel, or per `group` inputs.

    Activations are quantized to int8 on the fly, per token (and per group, when there are any).
    """

    bits: int
    group: int | None = None

    def __str__(self) -> str:
        return f"w{self.bits}" + (f"g{self.group}" if self.group else "")

    @staticmethod
    def parse(text: str) -> Scheme:
        """Reads ``w8`` or ``w8g32``. Raises PassError for a scheme that does not exist yet."""
        match = re.fullmatch(r"w(8)(?:g(32|64|128))?", text)
        if match is None:
            known = "f32 (none), w8, w8g32, w8g64, w8g128"
            raise PassError(f"'{text}' is not a quantization scheme; there are {known}.")
        return Scheme(int(match[1]), int(match[2]) if match[2] else None)

    def groups(self, inputs: int) -> int:
        """How many scales a row of `inputs` weights has. Raises PassError if they do not divide."""
        if self.group is None:
            return 1
        if inputs % self.group:
            raise PassError(f"{inputs} input channels do not divide into groups of {self.group}.")
        return inputs // self.group


def _symmetric(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """int8 values and float32 scales over the last axis: scale = max|x| / 127, ties to even."""
    scale = x.abs().amax(-1) / 127
    divisor = torch.where(scale == 0, torch.ones_like(scale), scale)
    return torch.round(x / divisor[..., None]).clamp(-127, 127).to(torch.int8), scale


_ROWS_AT_ONCE = 1 << 22  # elements of a weight quantized together: bounds the temporaries


def quantize_weight(weight: torch.Tensor, scheme: str) -> tuple[torch.Tensor, torch.Tensor]:
    """weight [..., N, K] float -> (int8 [..., N, K], float32 scale [..., N, groups])."""
    *outer, inputs = weight.shape
    rows = math.prod(outer)
    groups = Scheme.parse(scheme).groups(inputs)
    values = torch.empty((rows, inputs), dtype=torch.int8, device=weight.device)
    scale = torch.empty((rows, groups), dtype=torch.float32, device=weight.device)
    flat = weight.reshape(rows, inputs)
    step = max(1, _ROWS_AT_ONCE // inputs)
    for begin in range(0, rows, step):
        part = flat[begin : begin + step].float()
        q, scale[begin : begin + step] = _symmetric(part.reshape(len(part), groups, -1))
        values[begin : begin + step] = q.reshape(part.shape)
    return values.reshape(*outer, inputs), scale.reshape(*outer, groups)


def quantize_activation(x: torch.Tensor, groups: int) -> tuple[torch.Tensor, torch.Tensor]:
    """x [..., K] float32 -> (int8 [..., K], float32 scale [..., groups])."""
    values, scale = _symmetric(x.float().reshape(*x.shape[:-1], groups, x.shape[-1] // groups))
    return values.reshape(x.shape), scale
