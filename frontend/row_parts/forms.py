"""Row forms: which dimensions of a value count rows. form_rules.py says how operators pass them on.

A graph from torch.compile has no token axis: hidden states are [B, S, H] here, [B * S, H] around a
matrix product and [B, heads, S, D] near attention. All of them are one table: a row for each token,
and in it the *features*. The form of a value says which of its dimensions count the rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from graphwright.ir.layout import size_of

__all__ = [
    "LAYOUT",
    "PRODUCTS",
    "REDUCTIONS",
    "TURNS",
    "VIEWS",
    "Form",
    "NoFormError",
    "rows_input",
    "tensor_of",
]

aten = torch.ops.aten
REDUCTIONS = {aten.mean.dim, aten.sum.dim_IntList, aten.amax.default, aten.amin.default}
TURNS = {aten.transpose.int, aten.permute.default}
VIEWS = {aten.view.default, aten._unsafe_view.default, aten.reshape.default}
LAYOUT = VIEWS | TURNS | {aten.unsqueeze.default, aten.squeeze.dim, aten.clone.default,
                            aten.alias.default, aten.detach.default}  # fmt: skip
"""Operators that compute nothing."""
PRODUCTS: dict[Any, int] = {aten.mm.default: 0, aten.addmm.default: 1}
"""Matrix products, and which operand holds the rows."""


class NoFormError(Exception):
    """An operator does not keep the rows of its operands apart, or is not known to."""


@dataclass(frozen=True)
class Form:
    """The dimensions of a value that count its rows, in the order in which rows are counted."""

    lead: tuple[int, ...]

    def features(self, value: torch.Tensor) -> tuple[int, ...]:
        """The other dimensions, in order."""
        return tuple(dim for dim in range(value.dim()) if dim not in self.lead)

    def sizes(self, value: torch.Tensor) -> tuple[int, ...]:
        """The sizes of the features. Raises NoFormError where one is symbolic, or 0."""
        sizes = [value.shape[dim] for dim in self.features(value)]
        if not all(isinstance(size, int) for size in sizes):
            raise NoFormError(f"{tuple(value.shape)} has rows of unknown size")
        if 0 in sizes:
            raise NoFormError(f"{tuple(value.shape)} has empty rows")
        return tuple(sizes)

    def rows(self, value: torch.Tensor) -> tuple[Any, ...]:
        """The sizes of the dimensions that count rows: ints and expressions."""
        return tuple(size_of(value.shape[dim]) for dim in self.lead)

    @property
    def in_front(self) -> bool:
        """Do the rows come first, so that each is one run of elements?"""
        return self.lead == tuple(range(len(self.lead)))


def rows_input(node: fx.Node) -> fx.Node:
    """The operand of a matrix product that holds the rows."""
    operand = node.args[PRODUCTS[node.target]]
    assert isinstance(operand, fx.Node)
    return operand


def tensor_of(node: fx.Node) -> Any:
    """What `node` computes as a fake tensor, the first of several; or the number it is."""
    value: Any = node.meta.get("val")
    return value[0] if isinstance(value, (tuple, list)) and value else value
