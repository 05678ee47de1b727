"""One kernel for a fused region: source generated for pointwise, shape, reduction and gather ops.

A program computes BLOCK columns of one row of every output. The source is a Python file like those
beside it, so that people can read it, and Triton finds its text; artifacts keep it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import fx

from graphwright.backends.regions.index import Index, unflatten
from graphwright.backends.regions.operands import dtype_name
from graphwright.backends.triton.generated import load, source_of
from graphwright.backends.triton.kernels.kernel import ROWS, RowCount, TritonKernel, define
from graphwright.backends.triton.kernels.sizes import next_power_of_two, quotient_up
from graphwright.backends.triton.regions.expressions import cast
from graphwright.backends.triton.regions.text import Text
from graphwright.backends.triton.regions.values import LONGEST, Inputs, Values
from graphwright.ir.errors import BackendError
from graphwright.ir.layout import row_axis

__all__ = ["Region", "region"]

_ELEMENTS = 1024  # of a tile, the terms of reductions included, unless one column has more


@dataclass(frozen=True)
class Region:
    """The kernel of a region, and the file that it was loaded from."""

    kernel: TritonKernel
    source: str


def region(
    module: fx.GraphModule, strides: Sequence[int], dtypes: Sequence[str], rows: RowCount
) -> Region:
    """The kernel that computes `module`, for inputs whose rows lie `strides` elements apart.

    Pointers: batch, the placeholders in order, the outputs, which are dense. strides: a number for
    each placeholder, not used for those of static shape, which are dense weights. dtypes: element
    types in memory of placeholders and outputs; bool tensors are int8 of 0 and 1. Raises
    BackendError naming the node that cannot be computed.
    """
    inputs = [node for node in module.graph.nodes if node.op == "placeholder"]
    (last,) = (node for node in module.graph.nodes if node.op == "output")
    result = last.args[0]
    outputs = list(result) if isinstance(result, (tuple, list)) else [result]
    if len(strides) != len(inputs) or len(dtypes) != len(inputs) + len(outputs):
        raise BackendError(
            f"region: {len(inputs)} inputs and {len(outputs)} outputs, but {len(strides)} strides "
            f"and {len(dtypes)} element types."
        )
    names = {node: f"in{number}" for number, node in enumerate(inputs)}
    places = Inputs(names, dict(zip(inputs, strides, strict=True)))
    writer = _Writer(places)
    for number, node in enumerate(outputs):
        writer.output(f"out{number}", node)
    pointers = ["batch", *names.values(), *(f"out{number}" for number in range(len(outputs)))]
    source, block = writer.source(pointers)
    function = load(source, "region")
    elements = max(block * writer.reduced, writer.shared)
    return Region(
        define(
            "region", function, dict(zip(pointers, ["int32", *dtypes], strict=True)),
            {"BLOCK": block, "ROWS": ROWS[rows]},
            grid=lambda size: (size[rows], quotient_up(writer.widest, block), 1),
            num_warps=max(1, min(16, elements // 256)),
        ),
        source,
    )  # fmt: skip


class _Writer:
    """Sections of one kernel, one for each row size of the outputs."""

    def __init__(self, inputs: Inputs) -> None:
        self._inputs = inputs
        self._sections: dict[int, Values] = {}
        self._columns: dict[int, tuple[Index, Text]] = {}
        self._rows: dict[int, Index] = {}

    @property
    def widest(self) -> int:
        return max(self._sections)

    @property
    def reduced(self) -> int:
        return max(values.reduced for values in self._sections.values())

    @property
    def shared(self) -> int:
        return max(values.shared for values in self._sections.values())

    def output(self, pointer: str, node: fx.Node) -> None:
        value = node.meta["val"]
        axis = row_axis(value)
        if axis is None:
            raise BackendError(
                f"region: output '{node.name}' of shape {tuple(value.shape)} has no row a token."
            )
        inner = [int(size) for size in value.shape[axis + 1 :]]
        size = math.prod(inner)
        values = self._section(size)
        column, text = self._columns[size]
        behind = unflatten(column, [1, *inner])[1:]
        found = values.of(node, [Index(frozenset())] * axis + [self._rows[size], *behind])
        if value.dtype is torch.bool:
            found = cast(found, "int8")
        else:
            found = cast(found, dtype_name(value.dtype))
        place = f"{pointer} + row * {size} + {text.code}" if size > 1 else f"{pointer} + row"
        code = found.along(text.axes) if found.axes else found.code
        stored = code if found.is_literal else f"({code}).to({pointer}.dtype.element_ty)"
        mask = values.mask(text.axes)
        inside = "" if mask is None else f", mask={mask.code}"
        values.lines.append(f"tl.store({place}, {stored}{inside})")

    def _section(self, size: int) -> Values:
        if size not in self._sections:
            values = Values(self._inputs)
            self._sections[size] = values
            self._rows[size] = values.variable(0, 2**31 - 1, Text("row", (), "int64"))
            if size == 1:
                self._columns[size] = (Index(frozenset()), Text("0"))
            else:
                axis = values.axis("column", "BLOCK", f"column < {size}")
                text = Text("column", (axis,))
                self._columns[size] = (values.variable(0, size - 1, text), text)
        return self._sections[size]

    def source(self, pointers: list[str]) -> tuple[str, int]:
        """The file, and the number of columns of a program."""
        longest = max(self.reduced, self.shared)
        if longest > LONGEST:
            raise BackendError(
                f"region: a reduction over {longest} elements is more than the {LONGEST} that "
                "one program can hold."
            )
        block = max(1, min(next_power_of_two(self.widest), _ELEMENTS // self.reduced))
        lines = [
            "row = tl.program_id(0).to(tl.int64)",
            "rows = tl.load(batch + ROWS)",
            "if row >= rows:",
            "    return",
            "first = tl.program_id(1) * BLOCK",
        ]
        for size, values in self._sections.items():
            several = len(self._sections) > 1
            body = [] if size == 1 else ["column = first + tl.arange(0, BLOCK)"]
            body += values.lines
            if several:
                lines += [f"if first < {size}:", *(f"    {line}" for line in body)]
            else:
                lines += body
        head = f"def region({', '.join(pointers)}, BLOCK: tl.constexpr, ROWS: tl.constexpr):"
        return source_of("a fused region", head, lines), block
