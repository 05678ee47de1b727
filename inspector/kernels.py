"""`inspect --kernels`: what each kernel of an entry moves and computes, and what bounds it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from graphwright.inspector.roofline import Load, Machine, Prediction, predict, short_kernel
from graphwright.inspector.text import Readable, read_json

__all__ = ["kernel_data", "kernel_table"]


def kernel_data(artifact: Readable, loads: dict[str, Load], machine: Machine) -> dict[str, Any]:
    """Every phase of the entries in `loads` as JSON, and the machine that was assumed."""
    phases = _phases(artifact)
    return {
        "machine": asdict(machine),
        "entries": {
            name: {
                "load": asdict(load),
                "phases": [asdict(each) for each in predict(phases[name], load, machine)],
            }
            for name, load in loads.items()
        },
    }


def _phases(artifact: Readable) -> dict[str, Any]:
    found = read_json(artifact, "phases.json")
    if not found:
        target = read_json(artifact, "manifest.json")["target"]
        raise KeyError(
            f"there are predictions for CPUs alone; this artifact is for {target}. --ledger says "
            "which kernels it has."
        )
    return dict(found)


def kernel_table(artifact: Readable, loads: dict[str, Load], machine: Machine) -> str:
    """A table per entry: equal kernels together, the longest first."""
    phases = _phases(artifact)
    lines = [
        f"at {machine.bandwidth:.1f} GB/s, {machine.float32:.0f} GFLOP/s in float32, "
        f"{machine.int8:.0f} GOP/s in int8"
    ]
    for name, load in loads.items():
        found = predict(phases[name], load, machine)
        lines += ["", f"{name}: {load.tokens} tokens after {load.before}"]
        lines.append(
            f"  {'kernel':44} {'calls':>5} {'MB':>9} {'MOP':>9} {'bound':>8} {'predicted ms':>13}"
        )
        for kernel, group in _grouped(found):
            bounds = {each.bound for each in group}
            lines.append(
                _row(short_kernel(kernel), group, bounds.pop() if len(bounds) == 1 else "both")
            )
        lines.append(_row("all", found, ""))
    return "\n".join(lines)


def _grouped(found: Sequence[Prediction]) -> list[tuple[str, list[Prediction]]]:
    groups: dict[str, list[Prediction]] = {}
    for each in found:
        groups.setdefault(each.kernel, []).append(each)
    return sorted(groups.items(), key=lambda item: -sum(each.seconds for each in item[1]))


def _row(title: str, group: Sequence[Prediction], bound: str) -> str:
    return (
        f"  {title:44} {len(group):5d} {sum(each.bytes for each in group) / 1e6:9.3f} "
        f"{sum(each.operations for each in group) / 1e6:9.2f} {bound:>8} "
        f"{1e3 * sum(each.seconds for each in group):13.4f}"
    )
