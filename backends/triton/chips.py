"""The chips that programs are compiled for.

Sources of the figures: the CUDA programming guide's table of compute capabilities, and NVIDIA's
data sheets of the A100 80 GB, the H100 SXM and the B200; rates are dense ones. Smaller chips of a
generation differ by about the same factor in all of them, so that what the cost model prefers there
is mostly the same.
"""

from __future__ import annotations

from dataclasses import dataclass

from graphwright.ir.errors import BackendError

__all__ = ["CHIPS", "Chip", "chips_of"]


@dataclass(frozen=True)
class Chip:
    """The largest chip of compute capability `arch` (80: sm_80).

    shared: bytes of shared memory that a block may have, and about what a multiprocessor has.
    bandwidth: of memory, bytes/s. matmul: bfloat16 operations/s of the tensor cores, single:
    float32 operations/s of the other units.
    """

    name: str
    arch: int
    shared: int
    multiprocessors: int
    bandwidth: float
    matmul: float
    single: float

    @property
    def early(self) -> bool:
        """May its launches begin before those in front of them have ended (kernels/early.py)?"""
        return self.arch >= 90


CHIPS = (
    Chip("sm_80", 80, 166912, 108, 2.04e12, 312e12, 19.5e12),
    Chip("sm_90", 90, 232448, 132, 3.35e12, 989e12, 67e12),
    Chip("sm_100", 100, 232448, 148, 8.0e12, 2250e12, 75e12),
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
