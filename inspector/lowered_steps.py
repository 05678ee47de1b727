"""Which kernels run for which node of the planned graph, and what is known of each of them.

Ledger, phases and plan call a node by its name in the compiler; a printed graph numbers its names
anew. Both list the nodes that run code in the same order, so the n-th step is the n-th such node.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from graphwright.inspector.graph_nodes import GraphNode

__all__ = ["LoweredEntry", "lowered_entries", "step_names"]


@dataclass(frozen=True)
class LoweredEntry:
    """One entry (decode, prefill), step by step. rows: of the ledger; phases: of phases.json,
    those of a step together, none for GPUs. matched: is step n the n-th node that runs code?"""

    rows: tuple[dict[str, Any], ...]
    phases: tuple[tuple[dict[str, Any], ...], ...]
    matched: bool


def lowered_entries(
    nodes: Sequence[GraphNode],
    ledger: Sequence[Mapping[str, Any]],
    phases: Mapping[str, Sequence[Mapping[str, Any]]],
) -> dict[str, LoweredEntry]:
    """The entries of the ledger, in its order."""
    ops = [node.op for node in nodes if node.runs]
    found = {}
    for entry in dict.fromkeys(row["entry"] for row in ledger):
        rows = tuple(dict(row) for row in ledger if row["entry"] == entry)
        by_step: dict[str, list[dict[str, Any]]] = {}
        for phase in phases.get(entry, ()):
            by_step.setdefault(phase["step"], []).append(dict(phase))
        found[entry] = LoweredEntry(
            rows,
            tuple(tuple(by_step.get(row["step"], ())) for row in rows),
            [row["op"].removesuffix(".default") for row in rows] == ops,
        )
    return found


def step_names(nodes: Sequence[GraphNode], entry: LoweredEntry | None) -> dict[str, str]:
    """The compiler's name of each step -> its name in the printed graph; {} if that is unknown."""
    if entry is None or not entry.matched:
        return {}
    running = [node for node in nodes if node.runs]
    return {row["step"]: node.name for row, node in zip(entry.rows, running, strict=True)}
