"""Figures of the chips that programs are compiled for, and the choices that follow from them.

Source: NVIDIA's data sheets and the CUDA programming guide's table of compute capabilities.
"""

from __future__ import annotations

from dataclasses import dataclass

from graphwright.ir.errors import BackendError

__all__ = ["CHIPS", "Chip", "chips_of"]


@dataclass(frozen=True)
class Chip:
    """The largest chip of a compute capability `arch` (80: sm_80).

    processors: streaming multiprocessors. bandwidth: bytes/s of device memory. flops: dense
    bfloat16 operations/s. shared: bytes of shared memory that a block may have. registers: of a
    processor.
    """

    name: str
    arch: int
    processors: int
    bandwidth: float
    flops: float
    shared: int
    registers: int = 65536

    @property
    def balance(self) -> float:
        """Operations that the chip does while it reads a byte."""
        return self.flops / self.bandwidth

    def splits(self, programs: int, most: int) -> int:
        """Parts, a power of two <= most, into which a product of few programs is split so that
        each processor has work: at least two programs a processor, as one waits while one loads.
        """
        parts = 1
        while parts < most and programs * parts < 2 * self.processors:
            parts *= 2
        return min(parts, most)


CHIPS = (
    Chip("sm_80", 80, 108, 1.555e12, 312e12, 166912),
    Chip("sm_90", 90, 132, 3.35e12, 989e12, 232448),
    Chip("sm_100", 100, 148, 8.0e12, 2250e12, 232448),
)


def chips_of(target: str) -> tuple[Chip, ...]:
    """The chips of ``cuda`` (sm_80 and sm_90) or ``cuda:sm_80,sm_90``. Raises BackendError."""
    kind, _, names = target.partition(":")
    known = {chip.name: chip for chip in CHIPS}
    wanted = names.split(",") if names else ["sm_80", "sm_90"]
    wrong = [name for name in wanted if name not in known]
    if kind != "cuda" or wrong:
        raise BackendError(
            f"'{target}' is not a GPU target: write cuda:sm_80,sm_90; there are {', '.join(known)}."
        )
    return tuple(known[name] for name in sorted(set(wanted), key=lambda name: known[name].arch))
