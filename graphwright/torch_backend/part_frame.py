"""Where the inputs of a part are gathered, and how its outputs lie in the rows it computes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from graphwright.frontend.row_parts.find import RowPart
from graphwright.frontend.row_parts.forms import (
    Form,
    NoFormError,
)
from graphwright.ir.layout import size_of
from graphwright.runtime.memory import ALIGNMENT

__all__ = ["PartFrame", "PartLayout"]


@dataclass(frozen=True)
class _Value:
    """order: from rows in front, then features, to the dimensions as the graph has them."""

    order: tuple[int, ...]
    features: tuple[int, ...]
    dtype: torch.dtype

    @property
    def width(self) -> int:
        return math.prod(self.features)


@dataclass(frozen=True)
class _Output(_Value):
    """lead: of each dimension that counts rows its size, or the argument that is it, or that has it
    as the size of a dimension; -1: what is left of the rows."""

    lead: tuple[int | tuple[int, int | None], ...]


class PartLayout:
    """What is known of a part's inputs and outputs before they are there.

    Raises NoFormError where the shape of an output cannot be told from the arguments.
    """

    def __init__(self, part: RowPart, forms: dict[fx.Node, Form]) -> None:
        self.inputs = tuple(_value(node, form) for node, form in part.inputs)
        self.outputs = tuple(_output(node, forms[node], part) for node in part.outputs)
        self.numbers = len(part.numbers)
        self.width = sum(each.width for each in self.inputs)
        self.result_width = sum(each.width for each in self.outputs)
        types = {each.dtype for each in self.outputs}
        self.dtype = types.pop() if len(types) == 1 else torch.float32


class PartFrame:
    """The memory of a part for inputs of certain shapes. Used by one call at a time."""

    def __init__(self, layout: PartLayout, given: Sequence[Any]) -> None:
        values = given[: len(layout.inputs)]
        self.rows = values[0].numel() // layout.inputs[0].width
        self._layout = layout
        with torch.inference_mode(False):
            self._table = torch.empty(self.rows, layout.width)
            self._result = torch.empty(self.rows, layout.result_width)
        self._targets = []
        first = 0
        for value, each in zip(values, layout.inputs, strict=True):
            shape = [value.shape[dim] for dim in _inverse(each.order)]
            lead = shape[: len(shape) - len(each.features)]
            self._targets.append(self._view(self._table, each, lead, first, layout.width))
            first += each.width
        one = layout.inputs[0]
        self._as_it_is = len(layout.inputs) == 1 and one.order == tuple(range(len(one.order)))
        self._places = self._output_places(given)

    def gather(self, values: Sequence[torch.Tensor]) -> torch.Tensor:
        """float32 [T, F]: the rows of all inputs side by side, at an aligned address."""
        if self._as_it_is and _is_table(values[0]):
            return values[0]
        torch._foreach_copy_(self._targets, list(values))
        return self._table

    def result(self) -> torch.Tensor:
        """float32 [T, G], for the rows of all outputs side by side."""
        if self._layout.dtype is torch.float32:
            return torch.empty_like(self._result)
        return self._result

    def outputs(self, result: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The outputs in `result`, in their types."""
        base = result.to(self._layout.dtype)
        made = tuple(torch.as_strided(base, *place) for place in self._places)
        types = [each.dtype for each in self._layout.outputs]
        if all(dtype is self._layout.dtype for dtype in types):
            return made
        return tuple(each.to(dtype) for each, dtype in zip(made, types, strict=True))

    def _output_places(self, given: Sequence[Any]) -> list[tuple[Any, Any, Any]]:
        places: list[tuple[Any, Any, Any]] = []
        first = 0
        for each in self._layout.outputs:
            lead = [size if isinstance(size, int) else _size(given, *size) for size in each.lead]
            if -1 in lead:
                rest = -math.prod(lead)
                lead[lead.index(-1)] = self.rows // rest if rest else 0
            view = self._view(self._result, each, lead, first, self._layout.result_width)
            places.append((view.shape, view.stride(), view.storage_offset()))
            first += each.width
        return places

    def _view(
        self, table: torch.Tensor, value: _Value, lead: Sequence[int], first: int, width: int
    ) -> torch.Tensor:
        """Columns of a table of `width` columns, as the graph has them."""
        shape = [*lead, *value.features]
        strides = [math.prod(lead[dim + 1 :]) * width for dim in range(len(lead))]
        for dim in range(len(value.features)):
            strides.append(math.prod(value.features[dim + 1 :]))
        rows_first = torch.as_strided(table, shape, strides, first)
        return rows_first.permute(value.order)


def _is_table(value: torch.Tensor) -> bool:
    """Can native code read the rows of `value` where they are?"""
    if value.dtype is not torch.float32 or not value.is_contiguous():
        return False
    return value.data_ptr() % ALIGNMENT == 0


def _value(node: fx.Node, form: Form) -> _Value:
    value = node.meta["val"]
    came = (*form.lead, *form.features(value))
    order = tuple(came.index(dim) for dim in range(value.dim()))
    return _Value(order, form.sizes(value), value.dtype)


def _output(node: fx.Node, form: Form, part: RowPart) -> _Output:
    known: dict[Any, tuple[int, int | None]] = {}
    for place, number in enumerate(part.numbers, start=-len(part.numbers)):
        known.setdefault(size_of(number.meta["val"]), (place, None))
    for place, (source, given) in enumerate(part.inputs):
        for dim, size in zip(given.lead, given.rows(source.meta["val"]), strict=True):
            known.setdefault(size, (place, dim))
    lead: list[int | tuple[int, int | None]] = []
    for size in form.rows(node.meta["val"]):
        lead.append(size if isinstance(size, int) else known.get(size, -1))
    if lead.count(-1) > 1:
        raise NoFormError(f"the sizes of '{node}' are those of no input")
    value = _value(node, form)
    return _Output(value.order, value.features, value.dtype, tuple(lead))


def _inverse(order: Sequence[int]) -> list[int]:
    return [order.index(dim) for dim in range(len(order))]


def _size(given: Sequence[Any], place: int, dim: int | None) -> int:
    argument = given[place]
    size: int = argument if dim is None else argument.shape[dim]
    return size
