"""The layouts of weights that kernels read, as the blob table needs them."""

from __future__ import annotations

import math

import torch

from graphwright.backends.blobs import Layout, dense
from graphwright.backends.triton.kernels.weight_format import OCTET, WeightFormat, pack_nibbles
from graphwright.ir.schemes import Scheme

__all__ = ["dense_as", "nibbles", "unsigned"]


def dense_as(dtype: str) -> Layout:
    """Row by row, converted to `dtype`."""
    return dense(getattr(torch, dtype))


def nibbles(scheme: Scheme, *, experts: bool = False) -> Layout:
    """int8 values of a w4 scheme, two in a byte, as kernels/weight_format.py says; of a matrix, or
    of that of each expert.
    """
    format = WeightFormat.of(str(scheme))
    return Layout(
        f"nibbles-{scheme}",
        "uint8",
        lambda shape: math.prod(shape[:-2]) * format.weight_bytes(*shape[-2:]),
        lambda values: pack_nibbles(values, str(scheme)).numpy(),
        rows_multiple=1 if experts else OCTET,
    )


def unsigned() -> Layout:
    """Zero points."""
    return dense(torch.uint8)
