"""`bench --profile`: measured beside predicted, per kernel and per layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from graphwright.inspector.roofline import Load, Machine, Prediction, predict, short_kernel
from graphwright.runtime.profile import StepProfile

__all__ = ["profile_data", "profile_table"]


def profile_data(
    facts: Mapping[str, Any], measured: StepProfile, machine: Machine
) -> dict[str, Any]:
    """Every phase as JSON: predicted and measured seconds, and the seconds of waiting."""
    found = _predicted(facts, measured, machine)
    return {
        "entry": measured.entry, "tokens": measured.tokens, "before": measured.before,
        "steps": measured.steps, "step_s": measured.step, "outside": measured.outside,
        "machine": asdict(machine),
        "phases": [
            {**asdict(each), "measured_s": float(time), "waiting_s": float(wait)}
            for each, time, wait in zip(found, measured.phases, measured.waits, strict=True)
        ],
    }  # fmt: skip


def profile_table(facts: Mapping[str, Any], measured: StepProfile, machine: Machine) -> str:
    """The kernels, the longest first, then the layers, then what is outside."""
    found = _predicted(facts, measured, machine)
    named = [short_kernel(each.kernel) for each in found]
    layers = ["outside layers" if each.layer is None else f"layer {each.layer}" for each in found]
    after = f" after {measured.before}" if measured.before else ""
    tokens = f"{measured.tokens} token{'s' if measured.tokens > 1 else ''}{after}"
    lines = [
        f"{measured.entry}: {tokens}, medians of {measured.steps} steps; "
        f"{machine.bandwidth:.1f} GB/s, {machine.float32:.0f} GFLOP/s, "
        f"{machine.int8:.0f} int8 GOP/s",
        *_section("kernel", named, found, measured, longest_first=True),
        "",
        *_section("layer", layers, found, measured, longest_first=False),
    ]
    total, kernels = measured.step, float(measured.phases.sum())
    lines.append(
        f"  a step takes {1e3 * total:.3f} ms, its kernels {1e3 * kernels:.3f} ms: "
        f"{measured.outside:.1%} outside of them; the mean thread waits "
        f"{float(measured.waits.sum()) / total:.1%} for the slowest"
    )
    return "\n".join(lines)


def _predicted(
    facts: Mapping[str, Any], measured: StepProfile, machine: Machine
) -> list[Prediction]:
    return predict(facts[measured.entry], Load(measured.tokens, measured.before), machine)


def _section(
    title: str,
    names: Sequence[str],
    found: Sequence[Prediction],
    measured: StepProfile,
    longest_first: bool,
) -> list[str]:
    groups: dict[str, list[int]] = {}
    for number, name in enumerate(names):
        groups.setdefault(name, []).append(number)
    rows = list(groups.items())
    if longest_first:
        rows.sort(key=lambda row: -sum(measured.phases[i] for i in row[1]))
    lines = [
        f"  {title:44} {'calls':>5} {'MB':>9} {'predicted ms':>13} {'measured ms':>12} "
        f"{'GB/s':>7} {'waiting ms':>11}"
    ]
    for name, numbers in [*rows, ("all", list(range(len(found))))]:
        size = sum(found[i].bytes for i in numbers)
        time = float(sum(measured.phases[i] for i in numbers))
        lines.append(
            f"  {name:44} {len(numbers):5d} {size / 1e6:9.3f} "
            f"{1e3 * sum(found[i].seconds for i in numbers):13.4f} {1e3 * time:12.4f} "
            f"{size / 1e9 / max(time, 1e-12):7.2f} "
            f"{1e3 * float(sum(measured.waits[i] for i in numbers)):11.4f}"
        )
    return lines
