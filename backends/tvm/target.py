"""The CPUs a program can be compiled for, and which of them this machine is."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from typing import Any

from graphwright.ir.errors import BackendError
from graphwright.runtime.cpu import cpu_features as host_features

__all__ = ["CPU_NAMES", "Cpu", "cpu_by_name", "cpus_by_names", "host_cpu", "host_features"]

V3 = ("abm", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe")
V4 = (*V3, "avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512vl")
ARM = "aarch64-linux-gnu"


@dataclass(frozen=True)
class Cpu:
    """A CPU level to compile for: what its instructions are, and how kernels should use them."""

    name: str
    features: frozenset[str]  # names as in /proc/cpuinfo
    lanes: int  # float32 values in a vector register
    vnni: bool  # has vpdpbusd on vectors of `lanes` int32
    mcpu: str
    mattr: tuple[str, ...] = ()
    mtriple: str | None = None
    amx: bool = False  # has tile registers and tdpbssd

    def tvm_target(self) -> Any:
        """The tvm.target.Target; naming the CPU, as LLVM's "native" is refused by TVM."""
        from tvm.target import Target

        config: dict[str, Any] = {"kind": "llvm", "mcpu": self.mcpu}
        if self.mattr:
            config["mattr"] = list(self.mattr)
        if self.mtriple:
            config["mtriple"] = self.mtriple
        return Target(config)

    def required_features(self) -> tuple[str, ...]:
        """What a machine needs to run code compiled for this level, sorted."""
        return tuple(sorted(self.features))


_CPUS = (  # from the most capable
    Cpu("x86-64-v4-amx", frozenset((*V4, "avx512_vnni", "amx_tile", "amx_int8")), 16, True,
        "x86-64-v4", ("+avx512vnni", "+amx-tile", "+amx-int8"), amx=True),
    Cpu("x86-64-v4-vnni", frozenset((*V4, "avx512_vnni")), 16, True, "x86-64-v4", ("+avx512vnni",)),
    Cpu("x86-64-v4", frozenset(V4), 16, False, "x86-64-v4"),
    Cpu("x86-64-v3-vnni", frozenset((*V3, "avx_vnni")), 8, True, "x86-64-v3", ("+avxvnni",)),
    Cpu("x86-64-v3", frozenset(V3), 8, False, "x86-64-v3"),
    Cpu("aarch64-dotprod", frozenset(("asimd", "asimddp")), 4, False, "generic",
        ("+neon", "+dotprod"), ARM),
    Cpu("aarch64", frozenset(("asimd",)), 4, False, "generic", ("+neon",), ARM),
)  # fmt: skip
CPU_NAMES = ("host", *(cpu.name for cpu in _CPUS))


def cpu_by_name(name: str) -> Cpu:
    """The CPU level called `name`; "host" is the best one this machine has. Raises BackendError."""
    if name == "host":
        return host_cpu()
    for cpu in _CPUS:
        if cpu.name == name:
            return cpu
    raise BackendError(f"'{name}' is not a known CPU; there are {', '.join(CPU_NAMES)}.")


def cpus_by_names(names: str) -> tuple[Cpu, ...]:
    """The levels of a list such as "x86-64-v3,x86-64-v4", each once, from the most capable.

    Raises BackendError for an unknown name.
    """
    wanted = {cpu_by_name(name.strip()).name for name in names.split(",")}
    return tuple(cpu for cpu in _CPUS if cpu.name in wanted)


def host_cpu() -> Cpu:
    """The best level of which this machine has every feature. Raises BackendError without one."""
    features = host_features()
    for cpu in _CPUS:
        if cpu.features <= features:
            return cpu
    if platform.machine().lower() in ("aarch64", "arm64"):
        return cpu_by_name("aarch64")
    missing = ", ".join(sorted(set(V3) - features))
    raise BackendError(
        f"this {platform.machine()} CPU lacks {missing}; graphwright needs at least x86-64-v3 "
        "(AVX2, 2013 and later) or aarch64. To compile for another machine, name its CPU."
    )
