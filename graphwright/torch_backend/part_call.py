"""One part of a graph at run time: tensors in, rows through native code, tensors out."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from graphwright.frontend.row_parts.find import RowPart
from graphwright.frontend.row_parts.forms import Form, NoFormError
from graphwright.ir.layout import size_of
from graphwright.runtime.memory import ALIGNMENT
from graphwright.torch_backend.packed_weights import PackedWeights, packed
from graphwright.torch_backend.part_code import DECODE_ROWS, PartCode
from graphwright.torch_backend.part_pool import PartPool
from graphwright.torch_backend.quiet_torch import QuietTorch

__all__ = ["part_call"]

_LOG = logging.getLogger("graphwright.torch_backend")
_MOST_PACKINGS = 8  # of a part's weights


@dataclass(frozen=True)
class _Input:
    """order: the rows' dimensions first. None: they are."""

    order: tuple[int, ...] | None
    width: int


@dataclass(frozen=True)
class _Output:
    """lead: of each dimension that counts rows its size, or the argument that is it, or that has it
    as the size of a dimension; -1: what is left of the rows.

    order: from rows in front to the dimensions as the graph has them. None: they are so.
    """

    lead: tuple[int | tuple[int, int | None], ...]
    features: tuple[int, ...]
    order: tuple[int, ...] | None
    width: int
    dtype: torch.dtype


def part_call(
    part: RowPart, forms: dict[fx.Node, Form], code: PartCode, pool: PartPool, quiet: QuietTorch,
    by_torch: Callable[..., tuple[torch.Tensor, ...]], most_rows: int | None = None,
) -> Callable[..., tuple[torch.Tensor, ...]]:  # fmt: skip
    """A PartCall's `run`.

    by_torch: the same as torch runs it, for more rows than `most_rows`, and for weights that change
    so often that packing them takes longer.
    Raises NoFormError where the shape of an output cannot be told from the inputs.
    """
    inputs = tuple(_input(node, form) for node, form in part.inputs)
    outputs = tuple(_output(node, forms[node], part) for node in part.outputs)
    numbers = len(part.numbers)
    most = float("inf") if most_rows is None else most_rows * inputs[0].width
    weights: PackedWeights | None = None
    packings = 0

    def run(*given: Any) -> tuple[torch.Tensor, ...]:
        nonlocal weights, packings
        if packings > _MOST_PACKINGS or given[0].numel() > most:
            return by_torch(*given)
        values = given[: len(inputs)]
        tensors = given[len(inputs) : len(given) - numbers]
        if weights is None or not weights.fits(tensors):
            weights, packings = packed(code, tensors), packings + 1
            if packings > _MOST_PACKINGS:
                _LOG.warning("weights changed %d times; torch computes with them now.", packings)
        rows = _rows(values, inputs)
        if len(rows) <= DECODE_ROWS:
            quiet.hush()
        result = torch.empty((len(rows), code.outputs), dtype=torch.float32)
        address = weights.region.ctypes.data
        pool.run(code, address, len(rows), rows.data_ptr(), result.data_ptr())
        made, first = [], 0
        for output in outputs:
            last = first + output.width
            part_of = result if len(outputs) == 1 else result[:, first:last]
            made.append(_shaped(part_of, output, given))
            first = last
        return tuple(made)

    return run


def _input(node: fx.Node, form: Form) -> _Input:
    value = node.meta["val"]
    order = (*form.lead, *form.features(value))
    return _Input(None if form.in_front else order, math.prod(form.sizes(value)))


def _output(node: fx.Node, form: Form, part: RowPart) -> _Output:
    value = node.meta["val"]
    known: dict[Any, tuple[int, int | None]] = {}
    for place, size in enumerate(part.numbers, start=-len(part.numbers)):
        known.setdefault(size_of(size.meta["val"]), (place, None))
    for number, (source, given) in enumerate(part.inputs):
        for dim, size in zip(given.lead, given.rows(source.meta["val"]), strict=True):
            known.setdefault(size, (number, dim))
    lead: list[int | tuple[int, int | None]] = []
    for size in form.rows(value):
        lead.append(size if isinstance(size, int) else known.get(size, -1))
    if lead.count(-1) > 1:
        raise NoFormError(f"the sizes of '{node}' are those of no input")
    sizes = form.sizes(value)
    came = (*form.lead, *form.features(value))
    order = None if form.in_front else tuple(came.index(dim) for dim in range(value.dim()))
    return _Output(tuple(lead), sizes, order, math.prod(sizes), value.dtype)


def _rows(values: tuple[torch.Tensor, ...], inputs: tuple[_Input, ...]) -> torch.Tensor:
    """float32 [T, F]: the rows of all inputs side by side, at an aligned address."""
    tables = [
        (value if each.order is None else value.permute(each.order)).reshape(-1, each.width)
        for value, each in zip(values, inputs, strict=True)
    ]
    if len(tables) == 1:
        table = tables[0].to(torch.float32).contiguous()
        return table if table.data_ptr() % ALIGNMENT == 0 else table.clone()
    return torch.cat([table.to(torch.float32) for table in tables], 1)


def _shaped(rows: torch.Tensor, output: _Output, given: tuple[Any, ...]) -> torch.Tensor:
    lead = [size if isinstance(size, int) else _size(given, *size) for size in output.lead]
    made = rows.reshape(*lead, *output.features)
    if output.order is not None:
        made = made.permute(output.order)
    return made if output.dtype is torch.float32 else made.to(output.dtype)


def _size(given: tuple[Any, ...], place: int, dim: int | None) -> int:
    argument = given[place]
    size: int = argument if dim is None else argument.shape[dim]
    return size
