"""Where in the model's source a node comes from: what an error about it should show."""

from __future__ import annotations

from torch import fx

__all__ = ["source_line"]


def source_line(node: fx.Node) -> str:
    """` (from FILE, line N: CODE)` of the node, or of what it was made for; nothing if unknown."""
    for candidate in (node, *node.users, *node.all_input_nodes):
        lines = (candidate.meta.get("stack_trace") or "").strip().splitlines()
        if lines:
            return f" (from {' '.join(line.strip() for line in lines[-2:])})"
    return ""
