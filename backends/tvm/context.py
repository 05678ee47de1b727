"""What a lowering may ask about the step it lowers: where its values, weights and states lie."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import fx

from graphwright.backends.blobs import BlobTable, Layout, identity
from graphwright.backends.registry import arguments
from graphwright.backends.rows import RowCount, in_pool, row_count, rows_of
from graphwright.backends.tuning import Picks
from graphwright.backends.tvm.kernels.kernel import Kernel
from graphwright.backends.tvm.kernels.quantize_rows import Int8Rows
from graphwright.backends.tvm.kv_layout import KvLayout
from graphwright.backends.tvm.phases import Operand, parameters_of
from graphwright.backends.tvm.target import Cpu
from graphwright.ir.errors import BackendError
from graphwright.ir.int8_results import integer_reader
from graphwright.ir.layout import RowView
from graphwright.ir.memory import SHORT_ROW, MemoryPlan, buffer_name, result_of, results, scratch
from graphwright.ir.program import Program
from graphwright.ir.schemes import Scheme

__all__ = ["Kernels", "LoweringContext", "arguments"]


class Kernels:
    """The kernels of a library, each built once for the same parameters.

    on_kernel hears of each one as soon as there is it.
    """

    def __init__(self, on_kernel: Callable[[Kernel], None] | None = None) -> None:
        self._built: dict[Any, Kernel] = {}
        self._on_kernel = on_kernel

    def get(self, builder: Callable[..., Kernel], *args: Any, **options: Any) -> Kernel:
        """builder(*args, **options)."""
        key = (builder, args, tuple(sorted(options.items())))
        return self.named(key, lambda: builder(*args, **options))

    def named(self, key: Hashable, build: Callable[[], Kernel]) -> Kernel:
        """build(), for a kernel of which `key` says all that makes its code."""
        if key not in self._built:
            self._built[key] = build()
            if self._on_kernel is not None:
                self._on_kernel(self._built[key])
        return self._built[key]


@dataclass
class LoweringContext:
    """One entry being lowered."""

    program: Program
    plan: MemoryPlan
    cpu: Cpu
    kv: KvLayout
    blobs: BlobTable
    kernels: Kernels
    picks: Picks = field(default_factory=Picks)
    _filled: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._logits = result_of(self.program.graph)
        self._offsets = {buffer.name: buffer.offset for buffer in self.plan.buffers}
        linears = {torch.ops.gw.linear.default, torch.ops.gw.quantized_linear.default}
        self._streamed = {
            identity(self.program.weight_of(node.args[1]))
            for node in self.program.graph.nodes
            if node.target in linears
        }

    # ---- values

    def view(self, node: Any) -> RowView:
        """As rows_of."""
        return rows_of(node)

    def value(self, node: Any) -> Operand:
        """The first row of an argument: in the arena, among the inputs, or the logits."""
        view = self.view(node)
        start = view.offset * node.meta["val"].dtype.itemsize
        if view.base.op == "placeholder":
            name = str(view.base.target)
            if name not in parameters_of(bool(self.program.adapters)):
                raise BackendError(
                    f"'{node.name}' reads input '{name}', which a step does not have."
                )
            return Operand(name, start)
        return self._place(buffer_name(view.base), start)

    def results(self, step: fx.Node) -> tuple[Operand, ...]:
        """Where a step writes its results."""
        return tuple(self._written(name) for name in results(step))

    def scratch(self, step: fx.Node) -> tuple[Operand, ...]:
        """The step's scratch, by the rule in ir/memory.py; `read()` it where it is filled."""
        return tuple(self._written(need.name) for need in scratch(step, self.plan.max_tokens))

    def fills_scratch(self, step: fx.Node) -> tuple[bool, ...]:
        """Of each scratch: is this the first step of the entry with it, so that it must fill it?"""
        names = [need.name for need in scratch(step, self.plan.max_tokens)]
        first = tuple(name not in self._filled for name in names)
        self._filled |= set(names)
        return first

    def int8_results(self, step: fx.Node) -> tuple[Int8Rows, tuple[Operand, ...]] | None:
        """How a norm or a gated activation is to leave its result as int8, and where: values and
        scales. None where it is to leave float32."""
        reader = integer_reader(step)
        operands = self.scratch(step)
        if reader is None or not operands:
            return None
        assert all(self.fills_scratch(step)), f"the int8 rows of '{step.name}' are there already"
        given = arguments(reader)
        k = int(given["weight"].meta["val"].shape[1])
        return Int8Rows(k, Scheme.parse(given["scheme"]).group), operands

    def rows(self, step: fx.Node) -> RowCount:
        """As row_count."""
        return row_count(self.program, step)

    # ---- weights and states

    def weight(self, node: Any, layout: Layout, read: int | None = None) -> Operand:
        """The packed weight of a get_attr argument; `read` as in BlobTable.add."""
        weight = self.program.weight_of(node)
        if weight is None:
            raise BackendError(f"'{node}' is no weight: it is computed at run time.")
        name = self.blobs.add(str(node.target), weight, layout, read)
        return Operand("weights", 0, name)

    def streamed(self, node: Any) -> bool:
        """Does a matrix product of the program read this weight (a tied embedding)?"""
        return identity(self.program.weight_of(node)) in self._streamed

    def state(self, node: Any) -> Operand:
        """A tensor of a state, in block 0 of its pool or in slot 0, to be written or read."""
        name = str(node.target)
        if name not in self.kv.offsets:
            raise BackendError(f"'{name}' is no state; there are {sorted(self.kv.offsets)}.")
        place = self.kv.place_of(name)
        return Operand(in_pool("kv", self.kv.pool_of(name)), place, written=True)

    def table(self, state: Any) -> Operand:
        """The block table of the pool that a state lies in."""
        return Operand(in_pool("block_table", self.kv.pool_of(str(state.target))))

    # ---- helpers

    def kernel(self, builder: Callable[..., Kernel], *args: Any, **options: Any) -> Kernel:
        """builder(*args, cpu=…, **options), built once."""
        return self.kernels.get(builder, *args, cpu=self.cpu, **options)

    def replicable(self, step: fx.Node | None, elements: int, most: int = SHORT_ROW) -> bool:
        """May every thread compute all of a phase that works on `elements` a row? Not where that
        takes longer than a barrier, or where it writes the results of `step` into the logits."""
        return elements <= most and (step is None or self._logits not in results(step))

    def _written(self, name: str) -> Operand:
        return replace(self._place(name, 0), written=True)

    def _place(self, name: str, start: int) -> Operand:
        if name == self._logits:
            return Operand("logits", start)
        if name not in self._offsets:
            raise BackendError(f"plan '{self.plan.entry}' has no buffer '{name}': run PlanMemory.")
        return Operand("arena", self._offsets[name] + start, buffer=name)
