"""From a planned program to the launches of its entries, packed weights, and their plan.

A step of up to a bucket's tokens is a list of launches whose arguments are places in regions of
memory; nothing of it depends on the step's values, so it can be captured once as a CUDA graph and
replayed. Each bucket of the decode entry has a list of its own, and prefill has one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from graphwright.backends.adapters import describe_adapters
from graphwright.backends.blobs import BlobTable
from graphwright.backends.triton import lower as lower  # registers the lowerings
from graphwright.backends.triton.arena import plan_arena
from graphwright.backends.triton.chips import Chip, chips_of
from graphwright.backends.triton.context import Kernels, LoweringContext
from graphwright.backends.triton.dtypes import ACTIVATIONS, StoredTypes
from graphwright.backends.triton.fusions import Fusions
from graphwright.backends.triton.kernels.kernel import Size, TritonKernel
from graphwright.backends.triton.kernels.take_inputs import given_to, take_inputs
from graphwright.backends.triton.kv_layout import KvLayout
from graphwright.backends.triton.launches import Launch, Operand
from graphwright.backends.triton.lower.largest import drawn_tokens, largest_logits
from graphwright.backends.triton.registry import LedgerEntry, lower_entry
from graphwright.backends.tuning import Picks
from graphwright.ir.errors import BackendError
from graphwright.ir.memory import MemoryPlan
from graphwright.ir.program import Level, Program

__all__ = ["Bucket", "GpuOptions", "LoweredProgram", "lower_program"]

DEFAULT_CONTEXT = 2048  # tokens that attention's splits are chosen for when a model has no limit


@dataclass(frozen=True)
class GpuOptions:
    """dtype: of activations, and of what the graph has in float32 and is large: f32, bf16, f16.
    chips: what default sizes of tiles are chosen for.
    """

    dtype: str = "bf16"
    chips: tuple[Chip, ...] = chips_of("cuda")

    def __post_init__(self) -> None:
        if self.dtype not in ACTIVATIONS:
            raise BackendError(f"'{self.dtype}' is no dtype; there are {', '.join(ACTIVATIONS)}.")

    @property
    def activations(self) -> str:
        """Their element type."""
        return ACTIVATIONS[self.dtype]


@dataclass(frozen=True)
class Bucket:
    """A list of launches for steps of `entry` with at most so many tokens and sampled rows.

    After all others: largest finds the largest logit of each row; drawn, behind that, draws the
    tokens of rows that ask for it.
    """

    entry: str
    tokens: int
    rows: int
    arena_bytes: int
    launches: tuple[Launch, ...]
    largest: tuple[Launch, ...]
    drawn: tuple[Launch, ...]

    @property
    def all_launches(self) -> tuple[Launch, ...]:
        """Those of every kind of step."""
        return (*self.launches, *self.largest, *self.drawn)

    @property
    def size(self) -> Size:
        """What grids are computed from."""
        return {"T": self.tokens, "R": self.rows}


@dataclass(frozen=True)
class LoweredProgram:
    """`buckets` in ascending order of tokens within an entry; sources: of generated kernels."""

    buckets: tuple[Bucket, ...]
    blobs: BlobTable
    kv: KvLayout
    sources: dict[str, str]
    ledger: tuple[LedgerEntry, ...]
    plan: dict[str, Any]
    counter_bytes: int

    def bucket(self, entry: str, tokens: int, rows: int) -> Bucket:
        """The smallest bucket for such a step. Raises BackendError."""
        for bucket in self.buckets:
            if bucket.entry == entry and bucket.tokens >= tokens and bucket.rows >= rows:
                return bucket
        raise BackendError(f"'{entry}' takes no {tokens} tokens with {rows} sampled rows.")

    def kernels(self) -> list[TritonKernel]:
        """Each kernel once, in the order of first use."""
        found = {
            each.kernel.name: each.kernel for bucket in self.buckets for each in bucket.all_launches
        }
        return list(found.values())

    @property
    def weight_bytes(self) -> int:
        """Size of the weights region."""
        return self.blobs.bytes

    def weights(self, on_blob: Callable[[str], None] | None = None) -> Iterator[memoryview]:
        """The weights region in pieces; each weight is loaded, packed and dropped on the way."""
        return self.blobs.chunks(on_blob)


def lower_program(
    program: Program, options: GpuOptions, picks: Picks | None = None
) -> LoweredProgram:
    """Lowers every entry of a planned program for buckets of tokens.

    picks: what was measured; it is told which choices there were. Raises BackendError.
    """
    picks = Picks() if picks is None else picks
    if program.level is not Level.PLANNED or not program.plans:
        raise BackendError(
            f"the program is at level '{program.level.name.lower()}', not 'planned': "
            "run PlanMemory."
        )
    types = StoredTypes(program, options.activations)
    kv = KvLayout.of(program.states, options.activations, program.info.max_context)
    blobs, kernels = BlobTable(), Kernels()
    buckets: list[Bucket] = []
    ledger: list[LedgerEntry] = []
    counter_bytes = 0
    arenas: dict[str, MemoryPlan] = {}
    for name, entry in program.plans.items():
        fusions = Fusions.of(program, types, name)
        plan = arenas[name] = plan_arena(program, types, fusions, entry)
        for tokens in _sizes(plan):
            context = LoweringContext(
                program, plan, types, fusions, kv, blobs, kernels,
                program.info.max_context or DEFAULT_CONTEXT, tokens, options.chips, picks,
            )  # fmt: skip
            launches, entries = lower_entry(context)
            step = [_inputs(context), *launches]
            lists = (step, largest_logits(context), drawn_tokens(context))
            rows = min(tokens, plan.max_rows)
            settled = [tuple(context.settled(each)) for each in lists]
            buckets.append(Bucket(name, tokens, rows, context.arena_bytes, *settled))
            counter_bytes = max(counter_bytes, context.counter_bytes)
            if tokens == plan.max_tokens:
                ledger.extend(entries)
    described = _describe(program, arenas, buckets, kv, blobs)
    return LoweredProgram(
        tuple(buckets), blobs, kv, kernels.sources, tuple(ledger), described, counter_bytes
    )


def _inputs(context: LoweringContext) -> Launch:
    """What comes before all others: a step's inputs, from the host."""
    adapters, pools = bool(context.program.adapters), len(context.kv.pools)
    names = given_to(adapters)
    operands = tuple(map(Operand, (*(f"host_{name}" for name in names), "chosen", *names)))
    kernel = context.kernel(take_inputs, adapters=adapters, pools=pools)
    return Launch("inputs", kernel, operands)


def _sizes(plan: MemoryPlan) -> list[int]:
    """The tokens of each bucket: powers of two up to the most for decode, one for prefill."""
    sizes = {plan.max_tokens}
    if plan.entry == "decode":
        sizes |= {1 << i for i in range(plan.max_tokens.bit_length()) if 1 << i < plan.max_tokens}
    return sorted(sizes)


def _describe(
    program: Program, arenas: dict[str, MemoryPlan], buckets: list[Bucket], kv: KvLayout,
    blobs: BlobTable,
) -> dict[str, Any]:  # fmt: skip
    """The content of plan.json, as runtime/plan.py reads it."""
    entries = {}
    for name, plan in arenas.items():
        own = [bucket for bucket in buckets if bucket.entry == name]
        entries[name] = {
            "max_tokens": plan.max_tokens,
            "max_rows": plan.max_rows,
            "arena_bytes": max(bucket.arena_bytes for bucket in own),
            "buckets": [bucket.tokens for bucket in own],
            "buffers": [asdict(buffer) for buffer in plan.buffers],
        }
    described: dict[str, Any] = {
        "entries": entries,
        "kv": kv.describe(),
        "weights": {
            "bytes": blobs.bytes,
            "bytes_per_token": blobs.bytes_per_token,
            "entries": blobs.describe(),
        },
        "vocab_size": int(program.output.meta["val"].shape[-1]),
        "max_context": program.info.max_context,
    }
    if program.adapters:
        described["adapters"] = describe_adapters(program, blobs)
    return described
