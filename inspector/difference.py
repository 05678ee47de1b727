"""What is different between two artifacts, as JSON: made the same way or not, and to what end.

Everything is by name, as passes, entries, kernels and weights have names that last; a pass's place
in the order is part of it. Graphs are compared as graph_delta.py does, stage by stage.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from graphwright.inspector.graph_delta import compare_graphs
from graphwright.inspector.pass_data import delta_data, stages
from graphwright.inspector.roofline import Load, Machine, predict
from graphwright.inspector.text import Readable, read_json
from graphwright.inspector.weight_difference import weight_difference

__all__ = ["LOADS", "difference", "graph_difference"]

LOADS = {"decode": Load(1, 128), "prefill": Load(512, 0)}  # of the predictions, cut to an entry's
_RECORD = ("rewrites", "nodes_before", "nodes_after", "verified", "misses", "notes")


def difference(old: Readable, new: Readable, machine: Machine) -> dict[str, Any]:
    """`equal`, and by topic what differs: pairs [old, new] by name, None where one has none.

    machine: ceilings of the predicted times. Raises KeyError with a sentence if an artifact lacks
    an entry that every one has.
    """
    if read_json(old, "manifest.json") == read_json(new, "manifest.json"):
        return {"equal": True}
    found = {
        "about": _pairs(_about(old), _about(new)),
        "options": _pairs(_optional(old, "options.json"), _optional(new, "options.json")),
        "versions": _pairs(_optional(old, "versions.json"), _optional(new, "versions.json")),
        "passes": _passes(read_json(old, "log.json"), read_json(new, "log.json")),
        "graphs": _graphs(old, new),
        "kernels": _kernels(read_json(old, "ledger.json"), read_json(new, "ledger.json")),
        "predicted": _pairs(_predicted(old, machine), _predicted(new, machine)),
        "memory": _pairs(_memory(old), _memory(new)),
        "weights": weight_difference(old, new),
        "golden": _pairs(_optional(old, "golden.json"), _optional(new, "golden.json")),
        "files": _pairs(_hashes(old), _hashes(new)),
    }
    return {"equal": False, **found}


def graph_difference(old: str, new: str) -> dict[str, Any]:
    """The delta of two printed graphs, and whether they are the same text."""
    return {"equal": old == new, **delta_data(compare_graphs(old, new))}


def _pairs(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, list[Any]]:
    return {
        name: [old.get(name), new.get(name)]
        for name in dict.fromkeys([*old, *new])
        if old.get(name) != new.get(name)
    }


def _optional(artifact: Readable, name: str) -> dict[str, Any]:
    return dict(read_json(artifact, name)) if name in artifact.names else {}


def _about(artifact: Readable) -> dict[str, Any]:
    manifest, plan = read_json(artifact, "manifest.json"), read_json(artifact, "plan.json")
    return {
        "target": manifest["target"],
        "variants": [each["target"] for each in manifest.get("variants", ())],
        "graphwright": manifest["graphwright"],
        "format": manifest["format_version"],
        "vocabulary": plan["vocab_size"],
        "context": plan.get("max_context"),
    }


def _passes(old: list[dict[str, Any]], new: list[dict[str, Any]]) -> dict[str, Any]:
    """`order`: both lists of names, where they differ; `records`: by pass, what its log has
    otherwise. How many nodes went through a pass that did nothing says nothing."""
    names = [[row["name"] for row in log] for log in (old, new)]
    by_name = [{row["name"]: row for row in log} for log in (old, new)]
    records = {}
    for name in names[0]:
        if name in by_name[1]:
            rows = [log[name] for log in by_name]
            idle = not any(row["rewrites"] for row in rows)
            keys = [key for key in _RECORD if not (idle and key.startswith("nodes"))]
            if changed := _pairs(*({key: row.get(key) for key in keys} for row in rows)):
                records[name] = changed
    return {"order": names if names[0] != names[1] else None, "records": records}


def _graphs(old: Readable, new: Readable) -> dict[str, Any]:
    """The delta after each pass that changed a graph, by its name; and of the last graphs."""
    found = {}
    here, there = _graph_texts(old), _graph_texts(new)
    before: tuple[str, str] | None = None
    for name in here:
        if name in there:
            texts = (here[name], there[name])
            if texts[0] != texts[1] and texts != before:
                found[name] = graph_difference(*texts)
            before = texts
    last = [list(texts.values())[-1] if texts else "" for texts in (here, there)]
    return {"stages": found, "last": graph_difference(*last)}


def _graph_texts(artifact: Readable) -> dict[str, str]:
    """Pass -> the graph after it."""
    return {stage.partition("-")[2]: _text(artifact, stage) for stage in stages(artifact)}


def _text(artifact: Readable, stage: str) -> str:
    return artifact.read(f"graph/{stage}.txt").decode(errors="replace")


def _kernels(old: list[dict[str, Any]], new: list[dict[str, Any]]) -> dict[str, Any]:
    """By entry: `lowerings` and `kernels`, how often each is used."""
    found = {}
    for entry in dict.fromkeys(row["entry"] for row in [*old, *new]):
        sides = [[row for row in ledger if row["entry"] == entry] for ledger in (old, new)]
        lowerings = _pairs(*(_counted(row["lowering"] for row in rows) for rows in sides))
        kernels = _pairs(
            *(_counted(name for row in rows for name in row["kernels"]) for rows in sides)
        )
        if lowerings or kernels:
            found[entry] = {"lowerings": lowerings, "kernels": kernels}
    return found


def _counted(names: Iterable[str]) -> dict[str, int]:
    return dict(Counter(names))


def _predicted(artifact: Readable, machine: Machine) -> dict[str, dict[str, Any]]:
    """By entry: the load, bytes, operations and seconds of a step; {} without facts."""
    phases = _optional(artifact, "phases.json")
    plan = read_json(artifact, "plan.json")
    found = {}
    for entry, load in LOADS.items():
        if entry in phases:
            tokens = min(load.tokens, plan["entries"][entry]["max_tokens"])
            steps = predict(phases[entry], Load(tokens, load.before), machine)
            found[entry] = {
                "tokens": tokens,
                "before": load.before,
                "bytes": sum(each.bytes for each in steps),
                "operations": sum(each.operations for each in steps),
                "seconds": sum(each.seconds for each in steps),
            }
    return found


def _memory(artifact: Readable) -> dict[str, Any]:
    plan = read_json(artifact, "plan.json")
    kv = plan["kv"]
    found = {
        "weights, bytes": plan["weights"]["bytes"],
        "weights read for each token, bytes": plan["weights"]["bytes_per_token"],
        "KV cache for each token, bytes": kv["block_bytes"] / kv["block_size"],
        "KV states": len(kv["states"]),
        "pools of blocks": len(kv.get("pools", [kv])),
        "KV dtypes": ", ".join(sorted({state["dtype"] for state in kv["states"]})),
        "state of a sequence, bytes": kv.get("slot_bytes", 0),
    }
    for name, entry in plan["entries"].items():
        found[f"arena of {name}, bytes"] = entry["arena_bytes"]
        found[f"tokens of {name}"] = entry["max_tokens"]
        found[f"buffers of {name}"] = len(entry["buffers"])
    return found


def _hashes(artifact: Readable) -> dict[str, str]:
    entries = read_json(artifact, "manifest.json")["entries"]
    return {name: each["sha256"] for name, each in entries.items()}
