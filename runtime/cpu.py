"""What this machine's CPU can do, as the names that /proc/cpuinfo uses."""

from __future__ import annotations

from functools import cache
from pathlib import Path

__all__ = ["cpu_features"]


@cache
def cpu_features(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """Feature names of the first CPU, e.g. avx2, fma, avx512f; empty when the file is not there."""
    if not cpuinfo.is_file():
        return frozenset()
    for line in cpuinfo.read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return frozenset()
