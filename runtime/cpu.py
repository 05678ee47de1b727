"""What this machine's CPU can do, as the names that /proc/cpuinfo uses."""

from __future__ import annotations

import ctypes
import platform
from functools import cache
from pathlib import Path

__all__ = ["cpu_features"]

_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA = 158, 0x1023, 18  # of Linux on x86-64


@cache
def cpu_features(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """Feature names of the first CPU, e.g. avx2, fma, avx512f; empty when the file is not there.

    Those of AMX are among them where the system lets this process use it.
    """
    if not cpuinfo.is_file():
        return frozenset()
    for line in cpuinfo.read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            found = frozenset(value.split())
            matrix = {name for name in found if name.startswith("amx_")}
            return found - matrix if matrix and not _may_use_tiles() else found
    return frozenset()


def _may_use_tiles() -> bool:
    """Asks for AMX's registers, for all threads of this process: without, using them is fatal."""
    if platform.machine() != "x86_64":
        return False
    request = ctypes.c_long(_REQUEST_PERMISSION), ctypes.c_long(_TILE_DATA)
    return bool(ctypes.CDLL(None).syscall(ctypes.c_long(_ARCH_PRCTL), *request) == 0)
