"""Data that is not part of the repository: tests that use it skip when it is away."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

__all__ = ["shared_path"]

_ROOT = Path(os.environ.get("GRAPHWRIGHT_SHARED", Path(__file__).parents[2] / "shared"))


def shared_path(relative: str) -> Path:
    """`relative` below the shared data (GRAPHWRIGHT_SHARED, or `shared` beside the checkout).

    Skips the running test, with the reason, when it is not there.
    """
    path = _ROOT / relative
    if not path.exists():
        pytest.skip(f"needs '{relative}' of the shared data, which is not at {_ROOT}")
    return path
