"""The chips that programs are compiled for.

Source of the figures: the CUDA programming guide's table of compute capabilities.
"""

from __future__ import annotations

from dataclasses import dataclass

from graphwright.ir.errors import BackendError

__all__ = ["CHIPS", "Chip", "chips_of"]


@dataclass(frozen=True)
class Chip:
    """The largest chip of compute capability `arch` (80: sm_80). shared: bytes of shared memory
    that a block may have.
    """

    name: str
    arch: int
    shared: int


CHIPS = (
    Chip("sm_80", 80, 166912),
    Chip("sm_90", 90, 232448),
    Chip("sm_100", 100, 232448),
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
