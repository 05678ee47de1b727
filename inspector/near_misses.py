"""`why-not`: what a pass left alone and why: the log has the reasons of near misses."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from graphwright.inspector.text import Readable, read_json

__all__ = ["near_misses", "near_misses_text"]

_SHOWN = 6  # names of nodes with the same reason that are listed


def near_misses(artifact: Readable, name: str) -> dict[str, Any]:
    """`rewrites` of the pass `name`, and `reasons`: [a sentence, how often, the nodes], those that
    differ in numbers alone once. Raises KeyError naming the passes of the artifact's log."""
    log = read_json(artifact, "log.json")
    record = next((row for row in log if row["name"] == name), None)
    if record is None:
        known = ", ".join(row["name"] for row in log)
        raise KeyError(f"the artifact's log has no pass '{name}'; it has: {known}.")
    groups: dict[str, list[str]] = {}
    for miss in record["misses"]:
        unnumbered = re.sub(r"_\d+(?=')", "", miss)  # 'mul', 'mul_1', …: names of one kind
        groups.setdefault(re.sub(r"\d+", "#", unnumbered), []).append(miss)
    return {
        "pass": name,
        "rewrites": record["rewrites"],
        "reasons": [
            [same[0], len(same), [node for each in same if (node := _node(each))]]
            for same in groups.values()
        ],
    }


def _node(miss: str) -> str:
    """The node that a sentence is about: the first name in it."""
    match = re.search(r"'([^']+)'", miss)
    return match[1] if match else ""


def near_misses_text(found: Mapping[str, Any], described: Mapping[str, str]) -> str:
    """`found` in sentences; `described` as graphwright.pass_descriptions has it, or empty."""
    name, rewrites, reasons = found["pass"], found["rewrites"], found["reasons"]
    made = f"{rewrites} rewrite{'' if rewrites == 1 else 's'}"
    lines = []
    if reasons:
        count = sum(times for _, times, _ in reasons)
        lines.append(f"{name} made {made} and left {count} that look alike:")
        for sentence, times, nodes in reasons:
            lines.append(f"  {sentence}" + (f"  (×{times})" if times > 1 else ""))
            if times > 1 and nodes:
                more = f" and {len(nodes) - _SHOWN} more" if len(nodes) > _SHOWN else ""
                lines.append(f"    these are {', '.join(nodes[:_SHOWN])}{more}")
        lines.append("names are those of the compiler; a printed graph numbers nodes by itself.")
    elif rewrites:
        lines.append(f"{name} made {made} and left nothing that looked alike.")
    else:
        lines.append(f"{name} found nothing that looks like what it rewrites.")
    if described.get("what"):
        lines += ["", "what it does:", *(f"  {part}" for part in described["what"].split("\n\n"))]
    return "\n".join(lines)
