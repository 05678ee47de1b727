"""From a planned program to one native library, its packed weights and its plan.

The library needs nothing but libc: its functions and threads are those of step_pool.c, of which
`runtime/step_code.py` is the caller. All buffers start at multiples of 64 bytes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from graphwright.backends.adapters import describe_adapters
from graphwright.backends.blobs import BlobTable
from graphwright.backends.tuning import Picks
from graphwright.backends.tvm import lower as lower  # registers the lowerings
from graphwright.backends.tvm.context import Kernels, LoweringContext
from graphwright.backends.tvm.emit import kernels_of
from graphwright.backends.tvm.entries import entry_source
from graphwright.backends.tvm.kept_objects import KeptObjects
from graphwright.backends.tvm.kernels.kernel import Kernel
from graphwright.backends.tvm.kv_layout import KvLayout
from graphwright.backends.tvm.link import link
from graphwright.backends.tvm.meetings import Meetings, plan_meetings, verify_meetings
from graphwright.backends.tvm.objects import Objects
from graphwright.backends.tvm.phase_facts import describe_phases
from graphwright.backends.tvm.phases import ALONE_ROWS, PARAMETERS, Phase, parameters_of
from graphwright.backends.tvm.registry import LedgerEntry, lower_entry
from graphwright.backends.tvm.target import Cpu
from graphwright.ir.errors import BackendError
from graphwright.ir.memory import MemoryPlan
from graphwright.ir.program import Level, Program
from graphwright.runtime.variants import Variant

__all__ = ["BuiltProgram", "build", "build_variants", "lower_program", "plan_of"]

gw = torch.ops.gw
Progress = Callable[[str], None]
_POOL = Path(__file__).parent / "step_pool.c"


@dataclass(frozen=True)
class BuiltProgram:
    """What an artifact is written from. `plan` is the content of plan.json."""

    library: bytes
    cpu: Cpu
    plan: dict[str, Any]
    ledger: tuple[LedgerEntry, ...]
    phases: dict[str, list[Phase]]
    blobs: BlobTable
    facts: dict[str, list[dict[str, Any]]]  # of every phase; the content of phases.json

    @property
    def target(self) -> str:
        """What the artifact is for, as --target names it."""
        return self.cpu.name

    def variant(self, count: int) -> Variant:
        """How the manifest of an artifact with `count` variants names it."""
        return Variant.among(self.cpu.name, self.cpu.required_features(), count)

    def files(self, variant: Variant) -> Iterator[tuple[str, bytes]]:
        """The code of this variant, by its name in the artifact."""
        yield variant.library, self.library

    @property
    def weight_bytes(self) -> int:
        """Size of the weights region."""
        return self.blobs.bytes

    def weights(self, on_blob: Progress | None = None) -> Iterator[memoryview]:
        """The weights region in pieces; each weight is loaded, packed and dropped on the way."""
        return self.blobs.chunks(on_blob)


def build(
    program: Program, cpu: Cpu, *, picks: Picks | None = None, on_progress: Progress | None = None
) -> BuiltProgram:
    """Lowers and compiles a planned program, with the kernels picked by tuning, if it was tuned.

    Raises BackendError.
    """
    say = on_progress or (lambda text: None)
    kv = KvLayout.of(program.states, program.info.max_context)
    blobs = BlobTable()
    with tempfile.TemporaryDirectory(prefix="graphwright-") as folder:
        with Objects(Path(folder), cpu, KeptObjects.of_user()) as objects:
            parameters = list(parameters_of(bool(program.adapters)))
            objects.add_source(_POOL, _pool_macros(_vocabulary(program), parameters))
            say("lowering")
            phases, ledger = lower_program(program, cpu, kv, blobs, picks, objects.add_kernel)
            meetings: dict[str, Meetings] = {}
            for name, each in phases.items():
                meetings[name] = plan_meetings(each, program.plans[name])
                verify_meetings(each, program.plans[name], meetings[name])
            entries = Path(folder) / "entries.c"
            entries.write_text(entry_source(phases, meetings, blobs.offsets(), parameters))
            objects.add_source(entries)
            parts = _compile(phases, objects, say)
        say("linking")
        file = Path(folder) / "step.so"
        link(parts, file, cpu.mtriple)
        library = file.read_bytes()
    plan = _describe(program, kv, blobs)
    facts = {name: describe_phases(program, each, blobs) for name, each in phases.items()}
    return BuiltProgram(library, cpu, plan, tuple(ledger), phases, blobs, facts)


def plan_of(program: Program, cpu: Cpu) -> dict[str, Any]:
    """The content of plan.json, without any code. Raises BackendError."""
    kv = KvLayout.of(program.states, program.info.max_context)
    blobs = BlobTable()
    lower_program(program, cpu, kv, blobs)
    return _describe(program, kv, blobs)


def build_variants(
    program: Program, cpus: Sequence[Cpu], picks: Picks | None = None
) -> tuple[BuiltProgram, ...]:
    """`build` for each CPU. All share one weights region: packed layouts do not depend on the CPU.

    Raises BackendError as `build`, and where plans differ after all.
    """
    variants = tuple(build(program, cpu, picks=picks) for cpu in cpus)
    for each in variants[1:]:
        if each.plan != variants[0].plan:
            raise BackendError(
                f"the code for {each.cpu.name} wants other weights or memory than that for "
                f"{variants[0].cpu.name}: compile an artifact for each."
            )
    return variants


def lower_program(
    program: Program, cpu: Cpu, kv: KvLayout, blobs: BlobTable, picks: Picks | None = None,
    on_kernel: Callable[[Kernel], None] | None = None,
) -> tuple[dict[str, list[Phase]], list[LedgerEntry]]:  # fmt: skip
    """The phases of every planned entry, decode first: its order is the order of the weights.

    on_kernel hears of each kernel as soon as there is it.
    """
    if program.level is not Level.PLANNED or not program.plans:
        raise BackendError(
            f"the program is at level '{program.level.name.lower()}', not 'planned': "
            "run PlanMemory."
        )
    kernels, picks = Kernels(on_kernel), picks or Picks()
    phases: dict[str, list[Phase]] = {}
    ledger: list[LedgerEntry] = []
    for name, plan in program.plans.items():
        context = LoweringContext(program, plan, cpu, kv, blobs, kernels, picks)
        phases[name], entries = lower_entry(context)
        ledger.extend(entries)
    return phases, ledger


def _compile(phases: Mapping[str, Sequence[Phase]], objects: Objects, say: Progress) -> list[Path]:
    """The object files of the kernels, of the entries that call them, and of the pool."""
    kernels = kernels_of(phases)
    say(f"compiling {len(kernels)} kernels for {sum(map(len, phases.values()))} phases")
    for kernel in kernels:
        objects.add_kernel(kernel)
    return objects.files([*(kernel.name for kernel in kernels), "entries.c", _POOL.name])


def _pool_macros(vocabulary: int, names: Sequence[str] = tuple(PARAMETERS)) -> dict[str, str]:
    """What step_pool.c must know of an entry's parameters, by their names, and results."""
    return {
        "BATCH": str(names.index("batch")),
        "LOGITS": str(names.index("logits")),
        "ARENA": str(names.index("arena")),
        "VOCABULARY": str(vocabulary),
        "ARGUMENT_TYPES": ",".join(["void*"] * len(names)),
        "ARGUMENTS(p)": ",".join(f"p[{number}]" for number in range(len(names))),
    }


def _vocabulary(program: Program) -> int:
    return int(program.output.meta["val"].shape[-1])


def _describe(program: Program, kv: KvLayout, blobs: BlobTable) -> dict[str, Any]:
    """The content of plan.json, as runtime/plan.py reads it."""
    described: dict[str, Any] = {
        "entries": {name: _describe_entry(entry) for name, entry in program.plans.items()},
        "alone_rows": ALONE_ROWS,
        "kv": kv.describe(),
        "weights": {
            "bytes": blobs.bytes,
            "bytes_per_token": blobs.bytes_per_token,
            "entries": blobs.describe(),
        },
        "vocab_size": _vocabulary(program),
        "max_context": program.info.max_context,
        "float_products": _float_products(program),
    }
    if program.adapters:
        described["adapters"] = describe_adapters(program, blobs)
    return described


def _float_products(program: Program) -> list[str]:
    """Weights that are multiplied as floats: such a product is rounded by how many rows a step
    has, while products of integers are exact."""
    return [
        str(node.args[1])
        for node in program.graph.nodes
        if node.target in (gw.linear.default, gw.routed_linear.default)
        and not node.kwargs.get("optional")  # adapters, of which the plan tells itself
    ]


def _describe_entry(plan: MemoryPlan) -> dict[str, Any]:
    return {
        "max_tokens": plan.max_tokens,
        "max_rows": plan.max_rows,
        "arena_bytes": plan.arena_bytes,
        "buffers": [asdict(buffer) for buffer in plan.buffers],
    }
