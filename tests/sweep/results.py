"""Results of the sweep as they lie on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["read_results"]


def read_results(path: Path) -> dict[str, dict[str, Any]]:
    """The last line of every model in the file at `path`, by model type; empty without a file."""
    if not path.is_file():
        return {}
    rows = [json.loads(line) for line in path.read_text().splitlines() if line]
    return {row["model"]: row for row in rows}
