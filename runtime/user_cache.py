"""The folder for what can be made again: compiled kernels, tuning's records, verified files."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["cache_folder"]

VARIABLE = "GRAPHWRIGHT_CACHE"


def cache_folder() -> Path:
    """GRAPHWRIGHT_CACHE, else a folder in the user's cache. Raises RuntimeError without a home."""
    asked = os.environ.get(VARIABLE)
    if asked:
        return Path(asked)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "graphwright"
