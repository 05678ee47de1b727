"""Everything that the page of an artifact shows, as JSON: gathered here, drawn by page/*.js.

Equal things are stored once, as a model of many layers repeats itself: lines of graphs, facts of
phases, rows of the ledger and launches are tables, and what uses them holds numbers.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from graphwright.inspector.graph_nodes import GraphNode, parse_graph
from graphwright.inspector.launch_data import launch_data
from graphwright.inspector.layers import fold_layers, number_ranges
from graphwright.inspector.lowered_steps import LoweredEntry, lowered_entries, step_names
from graphwright.inspector.pass_data import pass_data, stages
from graphwright.inspector.roofline import EXAMPLE, Machine
from graphwright.inspector.text import Readable, read_json

__all__ = ["page_data"]


class Table:
    """Distinct values in the order they come; `number` says which one a value is."""

    def __init__(self) -> None:
        self.values: list[Any] = []
        self._known: dict[Hashable, int] = {}

    def number(self, value: Any) -> int:
        """The place of `value`, JSON of numbers, texts, lists and objects."""
        key = _hashable(value)
        if key not in self._known:
            self._known[key] = len(self.values)
            self.values.append(value)
        return self._known[key]


def _hashable(value: Any) -> Hashable:
    if isinstance(value, Mapping):
        return tuple((key, _hashable(item)) for key, item in value.items())
    return tuple(map(_hashable, value)) if isinstance(value, (list, tuple)) else value


def page_data(
    artifact: Readable,
    title: str,
    descriptions: Mapping[str, Mapping[str, str]] | None = None,
    machine: Machine = EXAMPLE,
) -> dict[str, Any]:
    """What there is to see in `artifact`.

    descriptions: `stage` and `what` of passes, by name. machine: ceilings of the predictions, until
    the reader changes them. Raises KeyError with a sentence if the artifact lacks an entry.
    """
    manifest, plan = read_json(artifact, "manifest.json"), read_json(artifact, "plan.json")
    names = stages(artifact)
    nodes = parse_graph(_text(artifact, f"graph/{names[-1]}.txt")) if names else []
    phases = read_json(artifact, "phases.json") if "phases.json" in artifact.names else {}
    entries = lowered_entries(nodes, read_json(artifact, "ledger.json"), phases)
    return {
        "title": title,
        "target": str(manifest["target"]),
        "made_by": str(manifest["graphwright"]),
        "format": manifest["format_version"],
        "options": _optional(artifact, "options.json", {}),
        "versions": _optional(artifact, "versions.json", {}),
        "variants": [each["target"] for each in manifest.get("variants", ())],
        "vocabulary": plan["vocab_size"],
        "max_context": plan.get("max_context"),
        "weights": {key: plan["weights"][key] for key in ("bytes", "bytes_per_token")},
        "weight_kinds": _weight_kinds(plan),
        "tokenizer": "tokenizer.json" in artifact.names,
        "machine": asdict(machine),
        **pass_data(artifact, descriptions or {}),
        "graph": _graph(nodes, entries),
        "entries": _entries(entries),
        "memory": _memory(plan, nodes, entries),
        "kv": plan["kv"],
        "gpu": launch_data(artifact),
        "golden": _optional(artifact, "golden.json", None),
        "tuning": _optional(artifact, "tuning.json", None),
        "choice": _optional(artifact, "quant.json", None),
        "files": [
            [name, each["bytes"], each["sha256"]] for name, each in manifest["entries"].items()
        ],
    }


def _text(artifact: Readable, name: str) -> str:
    return artifact.read(name).decode(errors="replace")


def _optional(artifact: Readable, name: str, otherwise: Any) -> Any:
    return read_json(artifact, name) if name in artifact.names else otherwise


def _weight_kinds(plan: Mapping[str, Any]) -> list[list[Any]]:
    """[dtype, layout, how many, bytes] of the weights, the largest kind first."""
    kinds: dict[tuple[str, str], list[int]] = {}
    for each in plan["weights"].get("entries", ()):
        count = kinds.setdefault((each["dtype"], each["layout"]), [0, 0])
        count[0] += 1
        count[1] += each["bytes"]
    return sorted(([*kind, *count] for kind, count in kinds.items()), key=lambda row: -row[3])


def _graph(nodes: Sequence[GraphNode], entries: Mapping[str, LoweredEntry]) -> dict[str, Any]:
    """The planned graph in groups of layers. A node is [name, type, op, arguments, body, step];
    `steps` of a group are those of each of its layers."""
    running = [i for i, node in enumerate(nodes) if node.runs]
    step_of = {index: step for step, index in enumerate(running)}
    return {
        "matched": {name: each.matched for name, each in entries.items()},
        "weights": sum(node.op == "weight" for node in nodes),
        "inputs": [node.line for node in nodes if node.op == "input"],
        "groups": [
            {
                "layers": number_ranges(group.layers),
                "count": len(group.members),
                "outside": not group.layers,
                "nodes": [_node(nodes[i], step_of.get(i)) for i in group.nodes],
                "steps": [[step_of[i] for i in each if i in step_of] for each in group.members],
            }
            for group in fold_layers(nodes)
        ],
    }


def _node(node: GraphNode, step: int | None) -> list[Any]:
    if not node.op:
        return ["", "", "", node.line, list(node.body), None]
    return [node.name, node.type, node.op, node.arguments, list(node.body), step]


def _entries(entries: Mapping[str, LoweredEntry]) -> dict[str, Any]:
    """Of each entry: what lowered each step, as numbers of `ledger`, and the phases of each step,
    as numbers of `facts`."""
    found: dict[str, Any] = {}
    for name, entry in entries.items():
        ledger, facts = Table(), Table()
        lowered = [
            ledger.number({key: row[key] for key in ("op", "lowering", "kernels", "refusals")})
            for row in entry.rows
        ]
        phases = [
            [facts.number({k: v for k, v in each.items() if k not in ("step", "layer")})
             for each in step]
            for step in entry.phases
        ]  # fmt: skip
        found[name] = {
            "ledger": ledger.values, "lowered": lowered, "facts": facts.values, "phases": phases,
        }  # fmt: skip
    return found


def _memory(
    plan: Mapping[str, Any], nodes: Sequence[GraphNode], entries: Mapping[str, LoweredEntry]
) -> dict[str, Any]:
    """The arena of each entry; a buffer is [name, offset, bytes, first step, last step], by the
    name that the graph has for what it holds."""
    found = {}
    for name, entry in plan["entries"].items():
        printed = step_names(nodes, entries.get(name))
        found[name] = {
            "max_tokens": entry["max_tokens"],
            "max_rows": entry["max_rows"],
            "arena_bytes": entry["arena_bytes"],
            "steps": [printed.get(row["step"], row["step"]) for row in entries[name].rows]
            if name in entries else [],
            "buffers": [
                [_printed(each["name"], printed), each["offset"], each["bytes"], each["first"],
                 each["last"]]
                for each in entry["buffers"]
            ],
        }  # fmt: skip
    return found


def _printed(buffer: str, printed: Mapping[str, str]) -> str:
    """`rms_norm_default_1.int8g1` as `rms_norm_2.int8g1`."""
    step, dot, part = buffer.partition(".")
    return f"{printed.get(step, step)}{dot}{part}"
