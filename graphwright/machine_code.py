"""Which backend compiles for a target, chosen before any long work begins."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from graphwright.backends.triton.package import GpuPackage
    from graphwright.backends.tvm.build import BuiltProgram
    from graphwright.ir.program import Program

__all__ = ["CodeGenerator", "code_generator"]


@dataclass(frozen=True)
class CodeGenerator:
    """decode_tokens: the most tokens of a step of the decode entry that suit the target."""

    build: Callable[[Program], tuple[BuiltProgram, ...] | tuple[GpuPackage, ...]]
    decode_tokens: int


def code_generator(target: str, dtype: str) -> CodeGenerator:
    """For CPUs' names or ``cuda:sm_80,…``; dtype: of a GPU's activations (auto: bf16).

    Raises BackendError for a target or a dtype that does not exist.
    """
    if target.partition(":")[0] == "cuda":
        return _for_gpus(target, "bf16" if dtype == "auto" else dtype)
    from graphwright.backends.tvm.build import build_variants
    from graphwright.backends.tvm.target import cpus_by_names
    from graphwright.ir.errors import BackendError

    if dtype not in ("auto", "f32"):
        raise BackendError(f"activations on a CPU are f32; {dtype} is for a target such as cuda.")
    cpus = cpus_by_names(target)
    return CodeGenerator(lambda program: build_variants(program, cpus), decode_tokens=8)


def _for_gpus(target: str, dtype: str) -> CodeGenerator:
    from graphwright.backends.triton.build import GpuOptions, lower_program
    from graphwright.backends.triton.chips import chips_of
    from graphwright.backends.triton.package import package

    chips, options = chips_of(target), GpuOptions(dtype)

    def build(program: Program) -> tuple[GpuPackage, ...]:
        return (package(lower_program(program, options), chips),)

    return CodeGenerator(build, decode_tokens=64)
