"""Element types: ONNX's numbers and torch's."""

from __future__ import annotations

from types import MappingProxyType

import torch

from graphwright.ir.errors import FrontendError

__all__ = ["torch_dtype"]

# TensorProto.DataType; torch has no text, and types of 4 bits are read as int8 and uint8.
_DTYPES = MappingProxyType(
    {
        1: torch.float32, 2: torch.uint8, 3: torch.int8, 5: torch.int16, 6: torch.int32,
        7: torch.int64, 9: torch.bool, 10: torch.float16, 11: torch.float64, 16: torch.bfloat16,
    }
)  # fmt: skip


def torch_dtype(number: int, keeps_types: bool) -> torch.dtype:
    """Of ONNX's number; every float is float32 unless types are kept. Raises FrontendError."""
    if number not in _DTYPES:
        raise FrontendError(f"element type {number} of ONNX is not supported.")
    found = _DTYPES[number]
    return found if keeps_types or not found.is_floating_point else torch.float32
