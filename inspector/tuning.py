"""What tuning found, choice by choice."""

from __future__ import annotations

from graphwright.inspector.text import Readable, read_json

__all__ = ["tuning_table"]


def tuning_table(artifact: Readable) -> str:
    """One line for each choice: what was the default, what is taken, and how much faster it was."""
    rows = read_json(artifact, "tuning.json")
    lines = [f"{'kernel':44} {'calls':>5} {'default':>8} {'taken':>8} {'gain':>6}  how"]
    for row in rows:
        name = " ".join([row["kernel"], *(f"{k}={v}" for k, v in row["shape"].items())])
        kept = row["chosen"] == row["default"]
        gain = "-" if kept else f"{row['gain'] - 1:+.0%}"
        lines.append(
            f"{name:44} {row['calls']:5d} {row['default']:>8} {row['chosen']:>8} {gain:>6}  "
            f"{row['source']}"
        )
    return "\n".join(lines)
