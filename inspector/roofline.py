"""What a step should take: bytes and operations of each kernel, and the bound between them.

S. Williams, A. Waterman, D. Patterson, Roofline: an insightful visual performance model (2009).
The facts come from phases.json (backends/tvm/phase_facts.py says what they count).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["EXAMPLE", "Load", "Machine", "Prediction", "load_of", "predict", "short_kernel"]

# Operations a cycle and core: two fused multiply-adds of 8 floats; products of int8 by multiply,
# add pairs and add again, two of three instructions on 32 bytes, or by one of VNNI on as many;
# twice that with registers of 512 bits. AMX: 16 x 16 sums of 64 products in 16 cycles.
_FLOAT32, _INT8, _INT8_VNNI, _INT8_AMX = 32, 64, 128, 2048
_ASSUMED_GHZ = 2.5  # where /proc/cpuinfo does not say


@dataclass(frozen=True)
class Machine:
    """Ceilings: reads in GB/s, arithmetic in 10^9 operations a second."""

    bandwidth: float
    float32: float
    int8: float

    @classmethod
    def here(cls, threads: int, bandwidth: float, features: frozenset[str]) -> Machine:
        """The arithmetic of `threads` cores of this CPU at its present clock."""
        info = Path("/proc/cpuinfo")
        clock = re.search(r"cpu MHz\s*:\s*([\d.]+)", info.read_text()) if info.is_file() else None
        ghz = float(clock[1]) / 1e3 if clock else _ASSUMED_GHZ
        vnni = features & {"avx512_vnni", "avx_vnni"}
        cycles = ghz * threads
        wide = cycles * (2 if "avx512f" in features else 1)
        int8 = (_INT8_VNNI if vnni else _INT8) * wide
        if "amx_int8" in features:
            int8 = _INT8_AMX * cycles
        return cls(bandwidth, _FLOAT32 * wide, int8)

    def given(self, bandwidth: float | None, gops: tuple[float, float] | None) -> Machine:
        """This one but for the ceilings that are not None; `gops` are (float32, int8)."""
        float32, int8 = gops or (self.float32, self.int8)
        return Machine(self.bandwidth if bandwidth is None else bandwidth, float32, int8)


EXAMPLE = Machine(bandwidth=20.0, float32=100.0, int8=200.0)  # where a reader may begin


@dataclass(frozen=True)
class Load:
    """One step: `tokens` of one sequence after `before` others, of which `sampled` are sampled."""

    tokens: int
    before: int
    sampled: int = 1


@dataclass(frozen=True)
class Prediction:
    """One phase under one load. seconds: the larger of the two bounds; `bound` names it."""

    step: str
    kernel: str
    layer: int | None
    bytes: int
    operations: int
    seconds: float
    bound: str


def load_of(facts: Mapping[str, Any], load: Load) -> tuple[int, int]:
    """(bytes, operations) of a phase."""
    rows = load.tokens if facts["rows"] == "T" else load.sampled
    last, most = load.before + load.tokens, facts.get("most_positions") or math.inf
    looked_up = min(facts["weight_bytes_per_row"] * rows, facts["lookup_bytes"])
    size = facts["weight_bytes"] + looked_up + facts["bytes_per_row"] * rows
    return (
        size
        + facts["bytes_per_position"] * int(min(last, most * load.tokens))
        + facts.get("bytes_per_sequence", 0),
        facts["operations_per_row"] * rows + facts["operations_per_position"] * _pairs(load, most),
    )


def _pairs(load: Load, most: float) -> int:
    """Of a token and a position that it attends to, which are not more than `most` of one token."""
    all_of = int(min(max(most - load.before, 0), load.tokens))  # tokens that attend to all
    more = int((load.tokens - all_of) * most) if load.tokens > all_of else 0
    return all_of * load.before + all_of * (all_of + 1) // 2 + more


def predict(phases: Sequence[Mapping[str, Any]], load: Load, machine: Machine) -> list[Prediction]:
    """Every phase of an entry, in order."""
    found = []
    for facts in phases:
        size, operations = load_of(facts, load)
        ceiling = machine.int8 if facts["arithmetic"] == "int8" else machine.float32
        memory, compute = size / machine.bandwidth / 1e9, operations / ceiling / 1e9
        bound = "memory" if memory >= compute else "compute"
        named = (facts["step"], facts["kernel"], facts["layer"])
        found.append(Prediction(*named, size, operations, max(memory, compute), bound))
    return found


def short_kernel(name: str, width: int = 44) -> str:
    """A kernel's name without its CPU, cut to `width`."""
    name = re.sub(r"_(x86_64_v\w+|aarch64\w*)$", "", name)
    return name if len(name) <= width else name[: width - 1] + "…"
