"""One kernel for a fused region: generated code for pointwise, shape, reduction and gather ops.

An element of an output is computed by a recursive walk from the output to the inputs, on which
shape ops only rewrite indices (regions/shapes.py), so no intermediate value is stored. Reductions
become loops in front of the innermost loop that does not change them (region_values.py).

The row of an output is flat; its loop is split where an index needs a quotient, and cut where a
concatenation changes over, so that the innermost loop reads runs of memory that LLVM can vectorize.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import fx
from tvm.tirx.script import builder as T

from graphwright.backends.regions.index import (
    Index,
    Quotient,
    Remainder,
    flatten,
    unflatten,
)
from graphwright.backends.regions.operands import dtype_name
from graphwright.backends.tvm.kernels.kernel import Expr, Kernel, define, partition
from graphwright.backends.tvm.kernels.loops import quotient, remainder
from graphwright.backends.tvm.kernels.region_expressions import cast
from graphwright.backends.tvm.kernels.region_values import INT32, Inputs, Values
from graphwright.backends.tvm.target import Cpu
from graphwright.ir.errors import BackendError
from graphwright.ir.layout import row_axis

__all__ = ["region", "region_name"]

LONGEST = 512  # elements of the innermost loop: a longer row is shared by threads
SHORTEST = 8  # a loop is not split into shorter ones


def region(module: fx.GraphModule, strides: Sequence[int], *, cpu: Cpu) -> Kernel:
    """The kernel that computes `module`, for inputs whose rows lie `strides` elements apart.

    Pointers: the placeholders in order, then the outputs, which are dense. `strides` has a number
    for each placeholder; it is not used for those of static shape, which are dense weights. bool
    tensors are bytes of 0 and 1. Raises BackendError naming the node that cannot be computed.
    """
    inputs = [node for node in module.graph.nodes if node.op == "placeholder"]
    (last,) = (node for node in module.graph.nodes if node.op == "output")
    result = last.args[0]
    outputs = list(result) if isinstance(result, (tuple, list)) else [result]
    if len(strides) != len(inputs):
        raise BackendError(f"region: {len(inputs)} inputs but {len(strides)} strides.")
    counts = {str(size) for node in inputs for size in _row_counts(node)}
    if len(counts) > 1:
        raise BackendError(f"region: the inputs have different numbers of rows, {sorted(counts)}.")
    pointers = [(f"in{i}", _stored(node)) for i, node in enumerate(inputs)]
    pointers += [(f"out{i}", _stored(node)) for i, node in enumerate(outputs)]

    def body(thread: Expr, threads: Expr, rows: Expr, *buffers: Expr) -> None:
        places = Inputs(
            dict(zip(inputs, buffers, strict=False)), dict(zip(inputs, strides, strict=True)), rows
        )
        for node, buffer in zip(outputs, buffers[len(inputs) :], strict=True):
            _write(_Output.of(node), buffer, places, thread, threads, rows)

    return define(region_name(module, strides, cpu), pointers, body)


def _row_counts(node: fx.Node) -> list[torch.SymInt]:
    return [size for size in node.meta["val"].shape if isinstance(size, torch.SymInt)]


def _stored(node: fx.Node) -> str:
    dtype = dtype_name(node.meta["val"].dtype)
    return "int8" if dtype == "bool" else dtype


def region_name(module: fx.GraphModule, strides: Sequence[int], cpu: Cpu) -> str:
    """The kernel's name, from everything that makes its code: ops, arguments, shapes, dtypes,
    strides. Equal names mean equal kernels."""
    numbers = {node: f"%{i}" for i, node in enumerate(module.graph.nodes)}
    lines = [f"{tuple(strides)} {cpu.name}"]
    for node in module.graph.nodes:
        given = fx.node.map_arg((node.args, node.kwargs), lambda each: _Number(numbers[each]))
        value, shape = node.meta.get("val"), ""
        if isinstance(value, torch.Tensor):
            sizes = ("r" if isinstance(size, torch.SymInt) else str(size) for size in value.shape)
            shape = f"{','.join(sizes)} {value.dtype}"
        target = node.target if node.op == "call_function" else node.op
        lines.append(f"{numbers[node]} {target} {given} {shape}")
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    return f"region_{digest[:16]}"


class _Number(str):
    def __repr__(self) -> str:
        return str(self)


@dataclass
class _Plan:
    """How the row of an output is walked: sizes of nested loops, and cuts of the innermost one."""

    sizes: list[int]
    cuts: set[int] = field(default_factory=set)

    def segments(self) -> list[tuple[int, int]]:
        """The runs [low, high) of the innermost loop."""
        ends = sorted({0, *self.cuts, self.sizes[-1]})
        return list(itertools.pairwise(ends))


@dataclass(frozen=True)
class _Output:
    """A node that is written, `inner` being the sizes behind its row axis."""

    node: fx.Node
    axis: int
    inner: list[int]

    @staticmethod
    def of(node: fx.Node) -> _Output:
        value = node.meta["val"]
        axis = row_axis(value)
        if axis is None:
            raise BackendError(
                f"region: output '{node.name}' of shape {tuple(value.shape)} has no row a token."
            )
        return _Output(node, axis, [int(size) for size in value.shape[axis + 1 :]])

    @property
    def row_size(self) -> int:
        return math.prod(self.inner)

    def element(self, values: Values, row: Index, position: Index) -> Expr:
        """The element at `position` of a row."""
        behind = unflatten(position, [1, *self.inner])[1:]
        return values.of(self.node, [Index(frozenset())] * self.axis + [row, *behind])


def _plan(output: _Output, places: Inputs) -> _Plan:
    """Splits the loop over the row until the innermost part has no quotient left, then cuts it."""
    plan = _Plan([output.row_size])
    while True:
        values = Values(places)
        with values.looking_ahead():
            row = values.variable(0, 2**31 - 1, T.var("int32"))
            loops = [values.variable(0, size - 1, T.var("int32")) for size in plan.sizes]
            output.element(values, row, flatten(loops, plan.sizes))
        ((column, _),) = loops[-1].terms
        size = plan.sizes[-1]
        divisors = {
            atom.divisor
            for index in values.used
            for atom in index.atoms()
            if isinstance(atom, Quotient | Remainder) and column in atom.index.atoms()
        }
        fitting = [d for d in divisors if SHORTEST <= d < size and size % d == 0]
        if not fitting:
            break
        plan.sizes[-1:] = [size // max(fitting), max(fitting)]
    for index, edge in values.edges:
        if index.terms == loops[-1].terms and 0 < edge - index.constant < size:
            plan.cuts.add(edge - index.constant)
    return plan


def _write(
    output: _Output, buffer: Expr, places: Inputs, thread: Expr, threads: Expr, rows: Expr
) -> None:
    plan = _plan(output, places)
    outer = plan.sizes[:-1]
    for low, high in plan.segments():
        chunks = -(-(high - low) // LONGEST)
        size = -(-(high - low) // chunks)
        first, last = partition(rows * (math.prod(outer) * chunks), thread, threads)
        with T.serial(first, last) as item:
            values = Values(places)
            number, *digits, chunk = _digits(item, [*outer, chunks])
            row = values.variable(0, 2**31 - 1, number)
            loops = [values.variable(0, n - 1, d) for n, d in zip(outer, digits, strict=True)]
            run = flatten(loops, outer) * plan.sizes[-1]
            start = T.bind(chunk * size + low)
            length = size if chunks == 1 else T.min(high - start, T.int32(size))
            base = T.bind(number * output.row_size + run.expr(INT32))

            with values.looking_ahead():
                column = values.variable(low, high - 1, T.var("int32"))
                output.element(values, row, run + column)
            with T.serial(0, length) as j, values.inside():
                at = T.bind(start + j)
                column = values.variable(low, high - 1, at)
                computed = output.element(values, row, run + column)
                T.buffer_store(buffer, cast(computed, _stored(output.node)), [base + at])


def _digits(item: Expr, sizes: list[int]) -> list[Expr]:
    """The digits of `item` in a mixed radix, one more than sizes: the first has no bound."""
    found: list[Expr] = []
    for size in reversed(sizes):
        found.append(T.bind(remainder(item, size)) if size > 1 else T.int32(0))
        item = T.bind(quotient(item, size)) if size > 1 else item
    return [item, *reversed(found)]
