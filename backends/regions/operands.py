"""In which type an op of a region computes, and which of its operands have types of their own."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from graphwright.backends.regions.shapes import Arguments
from graphwright.ir.errors import BackendError

__all__ = ["COMPARISONS", "CONDITIONS", "common_dtype", "dtype_name", "is_constant"]

COMPARISONS = frozenset(
    "eq ne lt le gt ge logical_and logical_or logical_xor logical_not isnan isinf".split()
)
# Operands that keep their own type; all others take the type the op computes in.
CONDITIONS = frozenset({("where", "condition"), ("masked_fill", "mask")})
_OPERANDS = frozenset({"self", "other"})  # numbers given for these are constants of the op's type
_KNOWN = frozenset({torch.float32, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8,
                    torch.bool, torch.float64})  # fmt: skip


def dtype_name(dtype: torch.dtype) -> str:
    """torch's name of it, which is TVM's and Triton's too. Raises BackendError for what regions do
    not compute with."""
    if dtype not in _KNOWN:
        raise BackendError(f"a region cannot compute with {dtype}.")
    return str(dtype).removeprefix("torch.")


def common_dtype(name: str, given: Arguments, dtype: str) -> str:
    """The type that the op `name`, whose result is `dtype`, computes in: comparisons in that of
    torch's promotion."""
    if name not in COMPARISONS:
        return dtype
    if name.startswith("logical"):
        return "bool"
    sides: list[Any] = [
        side.meta["val"] if isinstance(side, fx.Node) else side
        for side in (given["self"], given.get("other", given["self"]))
    ]
    found = dtype_name(torch.result_type(*sides))
    return "int32" if found == "bool" else found


def is_constant(name: str, key: str, value: Any) -> bool:
    """Is a number given for `key` a value of the type the op computes in, not a parameter?"""
    constant = key in _OPERANDS or (name, key) == ("masked_fill", "value")
    return constant and isinstance(value, (bool, int, float))
