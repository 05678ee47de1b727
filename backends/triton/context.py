"""What a lowering may ask about the step it lowers: where its values, weights and states lie."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from torch import fx

from graphwright.backends.blobs import BlobTable, Layout, dense
from graphwright.backends.registry import arguments
from graphwright.backends.rows import in_pool, row_count, rows_of
from graphwright.backends.triton.chips import Chip
from graphwright.backends.triton.dtypes import ITEM_SIZES, StoredTypes
from graphwright.backends.triton.fusions import Fusions
from graphwright.backends.triton.kernels.kernel import RowCount, TritonKernel
from graphwright.backends.triton.kv_layout import KvLayout
from graphwright.backends.triton.launches import PARAMETERS, Launch, Operand
from graphwright.backends.tuning import Picks
from graphwright.ir.errors import BackendError
from graphwright.ir.layout import RowView
from graphwright.ir.memory import MemoryPlan, align, buffer_name, result_of, results
from graphwright.ir.program import Program

__all__ = ["Kernels", "LoweringContext", "arguments"]


class Kernels:
    """The kernels of a program, each built once for the same parameters."""

    def __init__(self) -> None:
        self._built: dict[Any, TritonKernel] = {}
        self.sources: dict[str, str] = {}  # generated ones, by kernel name

    def get(self, builder: Callable[..., TritonKernel], *args: Any, **options: Any) -> TritonKernel:
        """builder(*args, **options)."""
        key = (builder, args, tuple(sorted(options.items())))
        if key not in self._built:
            self._built[key] = builder(*args, **options)
        return self._built[key]

    def generated(self, kernel: TritonKernel, source: str) -> TritonKernel:
        """`kernel` or the equal one that was made before; its source is kept."""
        known = self.sources.setdefault(kernel.name, source)
        assert known == source, f"two sources for {kernel.name}"
        found: TritonKernel = self._built.setdefault(kernel.name, kernel)
        return found


@dataclass
class LoweringContext:
    """One entry being lowered, for steps of at most `tokens` tokens.

    plan: the arena of the entry, whose steps may be larger: memory is laid out for them, so that
    buckets share kernels. Memory beside the plan's arena: what is `kept` is computed once a step,
    scratch serves one launch after the other. fusions: what was absorbed launches nothing. Sizes of
    tiles are those of `picks`, or by the cost model for `chips`.
    """

    program: Program
    plan: MemoryPlan
    types: StoredTypes
    fusions: Fusions
    kv: KvLayout
    blobs: BlobTable
    kernels: Kernels
    context: int
    tokens: int
    chips: tuple[Chip, ...]
    picks: Picks
    kept: dict[str, int] = field(default_factory=dict)
    _kept_end: int = 0
    _shared: int = 0
    counter_bytes: int = 0

    def __post_init__(self) -> None:
        self._logits = result_of(self.program.graph)
        self._offsets = {buffer.name: buffer.offset for buffer in self.plan.buffers}
        self._kept_end = align(self.plan.arena_bytes)

    # ---- values

    def view(self, node: Any) -> RowView:
        """As rows_of."""
        return rows_of(node)

    def value(self, node: Any) -> Operand:
        """The first row of an argument: in the arena, among the inputs, or the logits."""
        view = self.view(node)
        start = view.offset * ITEM_SIZES[self.types.of(node)]
        if view.base.op == "placeholder":
            name = str(view.base.target)
            if name not in PARAMETERS:
                raise BackendError(
                    f"'{node.name}' reads input '{name}', which a step does not have."
                )
            return Operand(name, start, dtype=self.types.of(node))
        return replace(self._place(buffer_name(view.base), start), dtype=self.types.of(node))

    def dtype(self, node: Any) -> str:
        """The element type of an argument in memory."""
        return self.types.of(node)

    def results(self, step: fx.Node) -> tuple[Operand, ...]:
        """Where a step writes its results."""
        return tuple(
            replace(self._place(name, 0), dtype=dtype)
            for name, dtype in zip(results(step), self.result_dtypes(step), strict=True)
        )

    def result_dtypes(self, step: fx.Node) -> tuple[str, ...]:
        """The element types of a step's results in memory."""
        return tuple(
            self.types.of_result(step, name, value) for name, value in results(step).items()
        )

    def rows(self, step: fx.Node) -> RowCount:
        """As row_count."""
        return row_count(self.program, step)

    def most(self, rows: RowCount) -> int:
        """The most rows of a step of this entry."""
        return self.plan.max_tokens if rows == "T" else self.plan.max_rows

    def bucket(self, rows: RowCount) -> int:
        """The most rows of the steps that are lowered now."""
        return min(self.tokens, self.most(rows))

    # ---- memory beside the plan

    def keep(self, name: str, size: int) -> tuple[Operand, bool]:
        """`size` bytes that stay through the step, and whether nobody asked for them before."""
        first = name not in self.kept
        if first:
            self.kept[name] = self._kept_end
            self._kept_end = align(self._kept_end + size)
        return Operand("arena", self.kept[name]), first

    def scratch(self, *sizes: int) -> tuple[Operand, ...]:
        """Memory that the launches of one lowering share, of so many bytes each.

        Each call begins anew: what one launch was given, a later one of the step may be, too.
        """
        found, end = [], 0
        for size in sizes:
            found.append(Operand("arena", _SCRATCH + end))
            end = align(end + size)
        self._shared = max(self._shared, end)
        return tuple(found)

    def counters(self, size: int) -> Operand:
        """`size` bytes of zeros, which every launch leaves as it found them."""
        self.counter_bytes = max(self.counter_bytes, size)
        return Operand("counters")

    @property
    def arena_bytes(self) -> int:
        """All memory of the entry: the plan's arena, what is kept, and the scratch."""
        return self._kept_end + self._shared

    def settled(self, launches: list[Launch]) -> list[Launch]:
        """The launches with scratch at its place, behind all that is kept."""

        def place(operand: Operand) -> Operand:
            if operand.parameter != "arena" or operand.offset < _SCRATCH:
                return operand
            return replace(operand, offset=operand.offset - _SCRATCH + self._kept_end)

        return [
            Launch(each.step, each.kernel, tuple(place(operand) for operand in each.operands))
            for each in launches
        ]

    # ---- weights and states

    def weight(self, node: Any, layout: Layout | None = None, read: int | None = None) -> Operand:
        """The packed weight of a get_attr argument, dense float32 by default; `read` as in
        BlobTable.add.
        """
        weight = self.program.weight_of(node)
        if weight is None:
            raise BackendError(f"'{node}' is no weight: it is computed at run time.")
        name = self.blobs.add(str(node.target), weight, layout or dense(), read)
        return Operand("weights", 0, name)

    def state(self, node: Any) -> Operand:
        """A tensor of a state, in block 0 of its pool or in slot 0, in front of the first one."""
        name = str(node.target)
        if name not in self.kv.offsets:
            raise BackendError(f"'{name}' is no state; there are {sorted(self.kv.offsets)}.")
        return Operand(in_pool("kv", self.kv.pool_of(name)), self.kv.place_of(name))

    def table(self, state: Any) -> Operand:
        """The block table of the pool that a state lies in."""
        return Operand(in_pool("block_table", self.kv.pool_of(str(state.target))))

    # ---- helpers

    def kernel(
        self, builder: Callable[..., TritonKernel], *args: Any, **options: Any
    ) -> TritonKernel:
        """builder(*args, **options), built once."""
        return self.kernels.get(builder, *args, **options)

    def _place(self, name: str, start: int) -> Operand:
        if name == self._logits:
            return Operand("logits", start)
        if name not in self._offsets:
            raise BackendError(f"plan '{self.plan.entry}' has no buffer '{name}': run PlanMemory.")
        return Operand("arena", self._offsets[name] + start)


_SCRATCH = 1 << 60  # marks operands in scratch until its place is known
