"""The passes of an artifact, one by one: log, delta of the graph, and the graph after it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from graphwright.inspector.graph_delta import GraphDelta, compare_graphs
from graphwright.inspector.text import Readable, read_json

__all__ = ["delta_data", "pass_data", "stages"]


def stages(artifact: Readable) -> list[str]:
    """`07-recognize-attention` and so on, in order."""
    return [name[6:-4] for name in artifact.names if name.startswith("graph/")]


def pass_data(artifact: Readable, descriptions: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    """`passes`: each with its record, its description, its `delta` (None for the first one: what
    was captured is not in an artifact) and the number of its graph in `texts`, each of which is
    numbers of `lines`."""
    lines: dict[str, int] = {}
    texts: dict[str, int] = {}
    kept: list[list[int]] = []
    found = []
    before: str | None = None
    by_name = {stage.partition("-")[2]: stage for stage in stages(artifact)}
    for record in read_json(artifact, "log.json"):
        stage = by_name.get(record["name"])
        described = descriptions.get(record["name"], {})
        row = {
            **record,
            "what": described.get("what", ""),
            "group": described.get("stage", ""),
            "stage": stage,
            "text": None,
            "delta": None,
        }
        if stage is not None:
            text = artifact.read(f"graph/{stage}.txt").decode(errors="replace")
            if text not in texts:
                texts[text] = len(texts)
                kept.append([lines.setdefault(each, len(lines)) for each in text.split("\n")])
            row["text"] = texts[text]
            row["delta"] = None if before is None else delta_data(compare_graphs(before, text))
            before = text
        found.append(row)
    return {"passes": found, "lines": list(lines), "texts": kept}


def delta_data(delta: GraphDelta) -> dict[str, Any]:
    """A delta as JSON; a hunk is [times, [[sign, text], …]]."""
    return {
        "removed": delta.removed,
        "added": delta.added,
        "changed": delta.changed,
        "moved": delta.moved,
        "hunks": [[hunk.times, [list(row) for row in hunk.rows]] for hunk in delta.hunks],
    }
