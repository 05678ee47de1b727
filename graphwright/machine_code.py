"""Which backend compiles for a target, chosen before any long work begins."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from graphwright.backends.triton.chips import Chip
    from graphwright.backends.triton.package import GpuPackage
    from graphwright.backends.tuning import Choice, Picks, Rig
    from graphwright.backends.tvm.build import BuiltProgram
    from graphwright.ir.program import Program

__all__ = ["CodeGenerator", "GeneratorPlan", "code_generator"]


@dataclass(frozen=True)
class GeneratorPlan:
    """What is known before there is code. content: of plan.json. target: as the artifact's manifest
    names it. counter_bytes: on GPUs, of a region that kernels count in.
    """

    content: dict[str, Any]
    target: str
    counter_bytes: int | None = None


@dataclass(frozen=True)
class CodeGenerator:
    """plan: what `build` will say of memory, without any code. decode_tokens: the most tokens of a
    step of the decode entry that suit the target.

    choices: what a program leaves open, by the number of kernels that ask for it, and what times
    it here; None where the target is not tuned.
    """

    build: Callable[[Program, Picks | None], tuple[BuiltProgram, ...] | tuple[GpuPackage, ...]]
    plan: Callable[[Program], GeneratorPlan]
    decode_tokens: int
    choices: Callable[[Program], tuple[Mapping[Choice, int], Rig]] | None = None


def code_generator(target: str, dtype: str, *, tuned: bool = False) -> CodeGenerator:
    """For CPUs' names or ``cuda:sm_80,…``; dtype: of a GPU's activations (auto: bf16).

    tuned: what the program leaves open is to be measured here. Raises BackendError for a target or
    a dtype that does not exist, and for a target that cannot be tuned on this machine.
    """
    if target.partition(":")[0] == "cuda":
        return _for_gpus(target, "bf16" if dtype == "auto" else dtype, tuned)
    from graphwright.backends.tvm.build import build_variants, plan_of
    from graphwright.backends.tvm.target import cpus_by_names, host_cpu
    from graphwright.ir.errors import BackendError

    if dtype not in ("auto", "f32"):
        raise BackendError(f"activations on a CPU are f32; {dtype} is for a target such as cuda.")
    cpus = cpus_by_names(target)
    if tuned and cpus != (host_cpu(),):
        raise BackendError(
            f"tuning times code on the machine that compiles, which is {host_cpu().name}, and "
            f"'{target}' is not that alone: compile with --target host there, or without --tune."
        )

    def choices(program: Program) -> tuple[Mapping[Choice, int], Rig]:
        from graphwright.backends.tvm.product_rig import choices_of
        from graphwright.runtime.threads import choose_threads

        return choices_of(program, cpus[0], choose_threads())

    def plan(program: Program) -> GeneratorPlan:
        return GeneratorPlan(plan_of(program, cpus[0]), ",".join(cpu.name for cpu in cpus))

    return CodeGenerator(
        lambda program, picks: build_variants(program, cpus, picks), plan, decode_tokens=8,
        choices=choices,
    )  # fmt: skip


def _for_gpus(target: str, dtype: str, tuned: bool) -> CodeGenerator:
    from graphwright.backends.triton.build import GpuOptions, lower_program
    from graphwright.backends.triton.chips import chips_of
    from graphwright.backends.triton.package import package
    from graphwright.backends.tuning import Picks
    from graphwright.runtime.threads import choose_threads

    chips = chips_of(target)
    options = GpuOptions(dtype, chips)

    def build(program: Program, picks: Picks | None) -> tuple[GpuPackage, ...]:
        lowered = lower_program(program, options, picks)
        return (package(lowered, chips, threads=choose_threads()),)

    def plan(program: Program) -> GeneratorPlan:
        lowered = lower_program(program, options)
        return GeneratorPlan(lowered.plan, f"cuda:{','.join(c.name for c in chips)}",
                             lowered.counter_bytes)  # fmt: skip

    if not tuned:
        return CodeGenerator(build, plan, decode_tokens=64)
    rig = _rig(target, chips)

    def choices(program: Program) -> tuple[Mapping[Choice, int], Rig]:
        asked = Picks()
        lower_program(program, options, asked)
        return asked.asked, rig

    return CodeGenerator(build, plan, decode_tokens=64, choices=choices)


def _rig(target: str, chips: tuple[Chip, ...]) -> Rig:
    """Times candidates on this machine's GPU, which must be what is compiled for."""
    from graphwright.backends.triton.rig import GpuRig
    from graphwright.ir.errors import BackendError
    from graphwright.runtime.cuda.driver import Driver, NoGpuError
    from graphwright.runtime.errors import ArtifactError

    try:
        driver = Driver()
    except ArtifactError as error:
        reason = error.reason if isinstance(error, NoGpuError) else "cuda-bindings is not installed"
        raise BackendError(
            f"tuning '{target}' times code on a GPU, and none can be used here ({reason}): compile "
            "without --tune."
        ) from error
    own = driver.capability()
    if len(chips) != 1 or chips[0].arch > own or chips[0].arch // 10 != own // 10:
        raise BackendError(
            f"tuning times code on the GPU of this machine, which is sm_{own}, and '{target}' is "
            f"not that alone: compile with --target cuda:sm_{own // 10}0, or without --tune."
        )
    return GpuRig(driver, chips[0])
