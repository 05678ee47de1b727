"""Weight quantization schemes by name, e.g. ``w8`` and ``w4g128``: parameters and meaning."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import torch

from graphwright.ir.errors import PassError

__all__ = [
    "GROUPS",
    "Scheme",
    "check_scales",
    "dequantize",
    "nearest",
    "quantize_activation",
    "quantize_weight",
]

GROUPS = (32, 64, 128)  # inputs that may share a scale


@dataclass(frozen=True)
class Scheme:
    """Integer weights of `bits` bits; a scale per output channel, or per `group` inputs.

    w8: -127..127 with float32 scales. w4: always in groups, float16 scales; symmetric, values
    -8..7, or with a `zero` point per group, values 0..15 of which the zero point is subtracted.
    Activations are quantized to int8 on the fly, per token (and per group, when there are any).
    """

    bits: int
    group: int | None = None
    zero: bool = False

    def __str__(self) -> str:
        return f"w{self.bits}" + (f"g{self.group}" if self.group else "") + "z" * self.zero

    @staticmethod
    def parse(text: str) -> Scheme:
        """Reads ``w8``, ``w8g32``, ``w4g128``, ``w4g32z``. Raises PassError for anything else."""
        match = re.fullmatch(r"w(8|4)(?:g(32|64|128))?(z?)", text)
        if match is None or (match[1] == "8" and match[3]) or (match[1] == "4" and not match[2]):
            raise PassError(
                f"'{text}' is not a quantization scheme; there are f32 (none), bf16, f16, w8, "
                "w8g32, w8g64, w8g128, w4g32, w4g64, w4g128, and with zero points w4g32z, w4g64z, "
                "w4g128z."
            )
        return Scheme(int(match[1]), int(match[2]) if match[2] else None, bool(match[3]))

    def groups(self, inputs: int) -> int:
        """How many scales a row of `inputs` weights has. Raises PassError if they do not divide."""
        if self.group is None:
            return 1
        if inputs % self.group:
            raise PassError(f"{inputs} input channels do not divide into groups of {self.group}.")
        return inputs // self.group

    def for_inputs(self, inputs: int) -> Scheme:
        """This scheme, or the nearest whose groups divide `inputs`: smaller groups, then w8."""
        if self.group is None or inputs % self.group == 0:
            return self
        smaller = [each for each in GROUPS if each < self.group and inputs % each == 0]
        return Scheme(self.bits, max(smaller), self.zero) if smaller else Scheme(8)

    @property
    def parts(self) -> int:
        """Tensors that a quantized weight consists of: values, scales and perhaps zero points."""
        return 3 if self.zero else 2

    @property
    def range(self) -> tuple[int, int]:
        """The least and the greatest integer."""
        if self.bits == 8:
            return -127, 127
        return (0, 15) if self.zero else (-8, 7)


_ELEMENTS_AT_ONCE = 1 << 18  # of a weight quantized together: the temporaries stay in the cache


def quantize_weight(weight: torch.Tensor, scheme: str) -> tuple[torch.Tensor, ...]:
    """weight [..., N, K] float -> the parts of `scheme`, rounded to nearest, ties to even.

    int8 values [..., N, K]; scale [..., N, groups], float32 for w8 and float16 for w4; with zero
    points also uint8 [..., N, groups]. Raises PassError for weights that a float16 scale cannot
    reach.
    """
    parsed = Scheme.parse(scheme)
    *outer, inputs = weight.shape
    rows, groups = math.prod(outer), parsed.groups(inputs)
    values = torch.empty((rows, inputs), dtype=torch.int8, device=weight.device)
    dtype = torch.float32 if parsed.bits == 8 else torch.float16
    scale = torch.empty((rows, groups), dtype=dtype, device=weight.device)
    zero = torch.empty((rows, groups), dtype=torch.uint8, device=weight.device)
    flat = weight.reshape(rows, inputs)
    step = max(1, _ELEMENTS_AT_ONCE // inputs)
    real = weight.device.type != "meta"
    for begin in range(0, rows if real else 0, step):
        part = slice(begin, begin + step)
        x = flat[part].float().reshape(-1, inputs // groups)
        q, *found = nearest(x, parsed)
        values[part] = q.reshape(-1, inputs)
        scale[part], zero[part] = (each.reshape(-1, groups) for each in found)
    if real:
        check_scales(weight, scale)
    parts = (values.reshape(*outer, inputs), *(p.reshape(*outer, groups) for p in (scale, zero)))
    return parts[: parsed.parts]


def check_scales(weight: torch.Tensor, scale: torch.Tensor) -> None:
    """Raises PassError when the scales of a finite weight are not finite."""
    if not bool(scale.isfinite().all()) and bool(weight.isfinite().all()):
        most = float(weight.abs().max())
        raise PassError(f"weights of up to {most:.3g} need scales beyond float16: use w8 for them.")


def quantize_activation(x: torch.Tensor, groups: int) -> tuple[torch.Tensor, torch.Tensor]:
    """x [..., K] float32 -> (int8 [..., K], float32 scale [..., groups])."""
    values, scale = _symmetric(x.float().reshape(*x.shape[:-1], groups, x.shape[-1] // groups))
    return values.reshape(x.shape), scale


def dequantize(
    values: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None = None
) -> torch.Tensor:
    """(values - zero) * scale in float32: what the parts of a weight [..., K] stand for."""
    grouped = values.float().reshape(*scale.shape, -1)
    if zero is not None:
        grouped = grouped - zero.float()[..., None]
    return (grouped * scale.float()[..., None]).reshape(values.shape)


def nearest(x: torch.Tensor, scheme: Scheme) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Integers nearest to x [groups, G] float32, and scales and zero points [groups, 1]."""
    low, high = x.amin(1, keepdim=True), x.amax(1, keepdim=True)
    none = torch.zeros_like(low)
    if scheme.bits == 8:
        scale = torch.maximum(high, -low) / 127
        return _rounded(x, scale).clamp_(-127, 127), scale, none
    if scheme.zero:
        low, high = low.clamp(max=0), high.clamp(min=0)
        scale = ((high - low) / 15).half()
        zero = _rounded(-low, scale).clamp_(0, 15)
        return _rounded(x, scale).add_(zero).clamp_(0, 15), scale, zero
    # The largest magnitude becomes -8, whatever its sign, so that all sixteen values are used; then
    # the scale that fits these values best in the sense of least squares.
    q = _rounded(x, torch.where(high > -low, high, low) / -8).clamp_(-8, 7)
    fit, squares = (torch.linalg.vecdot(q, other)[:, None] for other in (x, q))
    scale = (fit / _divisor(squares)).half()
    return _rounded(x, scale).clamp_(-8, 7), scale, none


def _rounded(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return (x / _divisor(scale)).round_()


def _symmetric(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """int8 values and float32 scales over the last axis: scale = max|x| / 127, ties to even."""
    scale = x.abs().amax(-1) / 127
    q = torch.round(x / _divisor(scale)[..., None])
    return q.clamp(-127, 127).to(torch.int8), scale


def _divisor(scale: torch.Tensor) -> torch.Tensor:
    """The scales in float32, 1 where they are 0."""
    real = scale.float()
    return torch.where(real == 0, torch.ones_like(real), real)
