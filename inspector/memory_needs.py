"""What an engine will take: weights, caches, arena and the rest, as data and as text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from graphwright.inspector.text import Readable, read_json
from graphwright.runtime.footprint import Footprint
from graphwright.runtime.plan import Plan

__all__ = ["PROCESS_BYTES", "Subject", "memory_needs", "subject_of"]

PROCESS_BYTES = 80_000_000
"""Of a process that runs an artifact on a CPU, beside what is planned: measured as 50 MB for Python
with its libraries, and 20 MB for a tokenizer of 50,000 tokens. An estimate."""

_LAUNCHES = "gpu/launches.json"


@dataclass(frozen=True)
class Subject:
    """What is looked at. content: of plan.json. target: as a manifest names it. counter_bytes: as
    for Footprint.
    """

    name: str
    content: Mapping[str, Any]
    target: str
    quant: str
    counter_bytes: int | None = None


def subject_of(artifact: Readable, name: str) -> Subject:
    """An artifact as a subject. Raises KeyError with a sentence for one that lacks an entry."""
    options = read_json(artifact, "options.json") if "options.json" in artifact.names else {}
    return Subject(
        name,
        read_json(artifact, "plan.json"),
        str(read_json(artifact, "manifest.json")["target"]),
        options.get("quant", "?"),
        _counter_bytes(artifact) if _LAUNCHES in artifact.names else None,
    )


def _counter_bytes(artifact: Readable) -> int:
    found = read_json(artifact, _LAUNCHES).get("counter_bytes")
    if not isinstance(found, int):
        raise KeyError(
            f"{_LAUNCHES} of the artifact does not say what its kernels count in: an older "
            "graphwright wrote it, compile again."
        )
    return found


def memory_needs(
    subject: Subject, sequences: int, context: int | None, memory: int | None = None,
    draft: Subject | None = None, snapshots: int | None = 0,
) -> dict[str, Any]:  # fmt: skip
    """All sizes in bytes, of an engine for so many sequences of so many tokens (None: as many as an
    engine takes by itself). memory: what there is for all of it. draft: a draft model beside it.
    snapshots: of states, for prompts that begin alike; None: as many as `serve` takes by itself.

    Raises ArtifactError for a plan that is incomplete, RequestError for sequences, a context or
    snapshots that the engine would refuse.
    """
    plan = Plan.from_json(dict(subject.content))
    small = None if draft is None else Plan.from_json(dict(draft.content))
    footprint = Footprint(plan, subject.counter_bytes, small, snapshots)
    context = plan.context_for(context)
    parts = footprint.parts(plan.sequences_for(sequences), context)
    gpu = subject.counter_bytes is not None
    needs = {
        "model": subject.name,
        "target": subject.target,
        "quant": subject.quant,
        "where": "gpu" if gpu else "host",
        "max_sequences": sequences,
        "context": context,
        "max_context": plan.max_context,
        "vocab_size": plan.vocab_size,
        "rows": plan.rows,
        "weights": _weights(subject.content["weights"]),
        "kv": {
            **_caches(plan, subject.content["kv"], sequences, context),
            "snapshots": plan.snapshots_for(snapshots, sequences),
            "snapshot_bytes": plan.snapshot_bytes if plan.has_states else 0,
        },
        "arena": {
            name: {"max_tokens": entry.max_tokens, "bytes": entry.arena_bytes}
            for name, entry in plan.entries.items()
        },
        "planned": parts,
        "total_bytes": sum(parts.values()),
        "process_bytes": None if gpu else PROCESS_BYTES,
    }
    if draft is not None:
        needs["draft"] = {"model": draft.name, **footprint.draft_parts(sequences, context)}
    if memory is not None:
        needs["memory"] = _fit(footprint, needs, memory)
    return needs


def _weights(found: Mapping[str, Any]) -> dict[str, Any]:
    """By scheme, the largest first; what no recipe has narrowed goes by its dtype. Files of older
    versions do not say more than the dtype, nor what a token reads of each.
    """
    schemes: dict[str, dict[str, Any]] = {}
    for each in found.get("entries", ()):
        name = each.get("scheme") or each["dtype"]
        row = schemes.setdefault(name, {"scheme": name, "arrays": 0, "bytes": 0, "read": 0})
        row["arrays"] += 1
        row["bytes"] += each["bytes"]
        row["read"] = None if row["read"] is None or "read" not in each else (
            row["read"] + each["read"]
        )  # fmt: skip
    return {
        "bytes": found["bytes"],
        "bytes_per_token": found["bytes_per_token"],
        "schemes": sorted(schemes.values(), key=lambda row: -row["bytes"]),
    }


def _caches(plan: Plan, found: Mapping[str, Any], sequences: int, context: int) -> dict[str, Any]:
    """bytes_per_sequence: of the blocks and the slot of a sequence of `context` tokens. pools: as
    caches and index keys name them, where there are several; does a sequence give blocks back?
    """
    blocks = plan.blocks_of(context)
    pools = [
        {
            "bytes": count * pool.block_bytes,
            "block_bytes": pool.block_bytes,
            "bytes_per_sequence": pool.held_of(blocks, plan.block_size) * pool.block_bytes,
            "gives_back": pool.reach is not None,
        }
        for pool, count in zip(plan.pools, plan.pool_sizes(sequences, blocks), strict=True)
    ]
    keys = ("dtype", "heads", "head_dim", "value_dim", "first", "span", "chosen", "pool")
    return {
        "block_size": plan.block_size,
        "block_bytes": plan.block_bytes,
        "bytes_per_token": plan.block_bytes / plan.block_size,
        "bytes_per_sequence": sum(pool["bytes_per_sequence"] for pool in pools) + plan.slot_bytes,
        "slot_bytes": plan.slot_bytes,
        "pools": pools,
        "caches": _alike(found["states"], keys),
        "indexes": _alike(found.get("indexes", ()), ("dtype", "heads", "head_dim", "pool")),
        "rolling": _alike(found.get("rolling", ()), ("dtype", "kept", "channels")),
        "recurrent": _alike(found.get("recurrent", ()), ("size",)),
    }


def _alike(states: Any, keys: tuple[str, ...]) -> list[dict[str, Any]]:
    """The states in the order they come, those that agree in `keys` together, with their count."""
    counts = Counter(tuple(state.get(key) for key in keys) for state in states)
    return [
        {"count": count, **dict(zip(keys, kind, strict=True))} for kind, count in counts.items()
    ]


def _fit(footprint: Footprint, needs: Mapping[str, Any], memory: int) -> dict[str, Any]:
    """What fits into `memory`. missing_bytes: what all that was asked for lacks; 0 if it fits."""
    room = memory - (needs["process_bytes"] or 0)
    return {
        "bytes": memory,
        "missing_bytes": max(0, needs["total_bytes"] - room),
        "left_bytes": max(0, room - needs["total_bytes"]),
        "longest_context": footprint.longest_context(room),
        "most_sequences": footprint.sequences_within(room, needs["context"]),
        "most_sequences_of_a_step": footprint.plan.most_sequences,
    }
