"""How far two computations of the same value may differ: one table by dtype and comparison."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from graphwright.ir.errors import PassError

__all__ = ["TOLERANCES", "Tolerance", "check_close", "error_ratio"]


@dataclass(frozen=True)
class Tolerance:
    """|got - want| <= absolute * max(1, max|want|) + relative * |want|, elementwise."""

    absolute: float
    relative: float
    reason: str


TOLERANCES: dict[tuple[str, torch.dtype], Tolerance] = {
    ("exact", torch.float32): Tolerance(
        2e-6, 2e-6, "the same float32 operations; only BLAS blocking by shape may differ"
    ),
    ("reassociating", torch.float32): Tolerance(
        3e-5, 3e-5, "float32 sums in another order over some thousand terms and some tens of layers"
    ),
    ("16 bits", torch.float32): Tolerance(
        2**-12, 2**-12, "operands rounded to 2^-16 of the largest, next to others of 8 bits"
    ),
    ("exact", torch.bfloat16): Tolerance(0.0, 2**-8, "one rounding to 8 bits of mantissa"),
    ("reassociating", torch.bfloat16): Tolerance(
        2**-7, 2**-6, "a few roundings to 8 bits of mantissa"
    ),
    ("exact", torch.float16): Tolerance(0.0, 2**-10, "one rounding to 11 bits of mantissa"),
    ("reassociating", torch.float16): Tolerance(
        2**-9, 2**-9, "a few roundings to 11 bits of mantissa"
    ),
}


def error_ratio(got: torch.Tensor, want: torch.Tensor, tolerance: Tolerance) -> float:
    """The largest |got - want| over what `tolerance` allows there: <= 1 passes. NaN is inf."""
    if got.shape != want.shape:
        raise PassError(f"shapes differ: got {tuple(got.shape)}, expected {tuple(want.shape)}.")
    if want.numel() == 0:
        return 0.0
    got64, want64 = got.double(), want.double()
    same = (got64 == want64) | (got64.isnan() & want64.isnan())
    finite = want64[want64.isfinite()].abs()
    scale = max(1.0, float(finite.max())) if finite.numel() else 1.0
    allowed = tolerance.absolute * scale + tolerance.relative * want64.abs()
    ratio = torch.where(same, 0.0, (got64 - want64).abs() / allowed)
    return float(torch.nan_to_num(ratio, nan=float("inf")).max())


def check_close(got: torch.Tensor, want: torch.Tensor, kind: str = "reassociating") -> None:
    """Raises PassError unless `got` is within the table's tolerance of `want`.

    Integer and boolean tensors must be equal.
    """
    if not want.is_floating_point():
        if not torch.equal(got, want):
            raise PassError(f"{int((got != want).sum())} of {want.numel()} integers differ.")
        return
    tolerance = TOLERANCES[kind, want.dtype]
    ratio = error_ratio(got, want, tolerance)
    if not ratio <= 1:
        worst = float((got.double() - want.double()).abs().max())
        raise PassError(
            f"the largest difference is {worst:.3g}, {ratio:.3g} times what '{kind}' in "
            f"{want.dtype} allows ({tolerance.reason})."
        )
