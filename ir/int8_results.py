"""Results that integer products alone read: who computes them may leave them as int8."""

from __future__ import annotations

import operator

import torch
from torch import fx

from graphwright.ir.layout import row_size

__all__ = ["integer_reader"]

gw = torch.ops.gw
_ONE_RESULT = (gw.rms_norm.default, gw.layer_norm.default, gw.gated_act.default)
_SUM_FIRST = (gw.add_rms_norm.default, gw.add_layer_norm.default)


def integer_reader(step: fx.Node) -> fx.Node | None:
    """The first of the steps that read what a norm or a gated activation computes, if all are
    gw.quantized_linear that take a row for a vector, in as many groups, and nothing else reads it.
    """
    value = _value(step)
    if value is None or not value.users:
        return None
    first, *rest = value.users
    if not all(_takes_rows(reader, value) for reader in (first, *rest)):
        return None
    groups = {int(reader.args[2].meta["val"].shape[-1]) for reader in value.users}  # type: ignore[union-attr]
    return first if len(groups) == 1 else None


def _value(step: fx.Node) -> fx.Node | None:
    """What `step` computes to be read by products; of a norm that adds first, the second result."""
    if step.target in _ONE_RESULT:
        return step
    if step.target not in _SUM_FIRST:
        return None
    found = [each for each in step.users if each.target is operator.getitem and each.args[1] == 1]
    return found[0] if len(found) == 1 else None


def _takes_rows(reader: fx.Node, value: fx.Node) -> bool:
    if reader.target is not gw.quantized_linear.default or reader.args[0] is not value:
        return False
    if value in (*reader.args[1:], *reader.kwargs.values()):
        return False  # as its residual, too
    weight, shape = reader.args[1], value.meta["val"].shape
    assert isinstance(weight, fx.Node)
    length = int(weight.meta["val"].shape[1])
    return row_size(value.meta["val"]) == int(shape[-1]) == length
