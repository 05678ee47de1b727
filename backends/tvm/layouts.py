"""The packed layouts of the matrix kernels, as the blob table needs them."""

from __future__ import annotations

import numpy as np
import torch

from graphwright.backends.blobs import Layout, dense
from graphwright.backends.tvm.kernels.float_weights import (
    FloatWeights,
    pack_float,
    pack_routed_float,
)
from graphwright.backends.tvm.kernels.linear_w4 import pack_w4, pack_w4_rows
from graphwright.backends.tvm.kernels.linear_w8 import pack_w8
from graphwright.backends.tvm.kernels.matmul import TILE, pack_groups
from graphwright.backends.tvm.kernels.quantize_rows import padded
from graphwright.ir.schemes import Scheme

__all__ = [
    "linear_float_layout",
    "linear_quantized_layouts",
    "routed_float_layout",
    "routed_quantized_layouts",
    "table_quantized_layouts",
]


def linear_float_layout(weights: FloatWeights) -> Layout:
    """Tiles of 16 output channels, as pack_float says."""
    return Layout(
        f"linear-{weights.name}",
        str(weights.dtype).removeprefix("torch."),
        lambda shape: _rows(shape) * _float_inputs(shape[1], weights),
        lambda weight: pack_float(weight, weights),
        rows_multiple=TILE,
    )


def linear_quantized_layouts(scheme: Scheme) -> tuple[Layout, ...]:
    """The layouts of the parts of a weight [N, K]: values, scales and perhaps zero points.

    w8: int8 [ceil(N / 16), K' / 4, 16, 4] and float32 [ceil(N / 16), groups, 16]. w4: uint8
    [ceil(N / 16), K' / 64, 8, 16, 4], float16 and uint8 [ceil(N / 16), groups, 16].
    """
    values = Layout(
        f"linear-{_values(scheme)}",
        "int8" if scheme.bits == 8 else "uint8",
        lambda shape: _rows(shape) * padded(shape[1]) * scheme.bits // 8,
        lambda weight: _pack_values(weight.numpy(), scheme),
        rows_multiple=TILE,
    )
    return (values, *(_group_layout(dtype) for dtype in _group_dtypes(scheme)))


def routed_float_layout(weights: FloatWeights) -> Layout:
    """Of each expert what linear_float_layout says."""
    return Layout(
        f"routed-linear-{weights.name}",
        str(weights.dtype).removeprefix("torch."),
        lambda shape: shape[0] * _rows(shape[1:]) * _float_inputs(shape[2], weights),
        lambda weight: pack_routed_float(weight, weights),
        rows_multiple=1,
    )


def routed_quantized_layouts(scheme: Scheme) -> tuple[Layout, ...]:
    """Of each expert what linear_quantized_layouts says, for weights [E, N, K]."""
    return tuple(_routed(each) for each in linear_quantized_layouts(scheme))


def table_quantized_layouts(scheme: Scheme) -> tuple[Layout, ...]:
    """The layouts of the parts of a table [V, K] that is only read row by row.

    w8: as they are. w4: two nibbles a byte, uint8 [V, K' / 64, 32]: input channels 0..31 of 64 in
    the low nibbles.
    """
    if scheme.bits == 8:
        return dense(torch.int8), dense()
    values = Layout(
        f"rows-{_values(scheme)}",
        "uint8",
        lambda shape: shape[0] * padded(shape[1]) // 2,
        lambda weight: pack_w4_rows(weight.numpy(), scheme.zero),
        rows_multiple=1,
    )
    return (values, *(dense(getattr(torch, dtype)) for dtype in _group_dtypes(scheme)))


def _values(scheme: Scheme) -> str:
    """What the packed values depend on: not the size of a group."""
    return f"w{scheme.bits}" + "z" * scheme.zero


def _group_dtypes(scheme: Scheme) -> tuple[str, ...]:
    return ("float32",) if scheme.bits == 8 else ("float16", "uint8")[: scheme.parts - 1]


def _pack_values(weight: np.ndarray, scheme: Scheme) -> np.ndarray:
    return pack_w8(weight) if scheme.bits == 8 else pack_w4(weight, scheme.zero)


def _group_layout(dtype: str) -> Layout:
    """Scales or zero points [N, groups] as [ceil(N / 16), groups, 16]."""
    size = np.dtype(dtype).itemsize
    return Layout(
        f"linear-groups-{dtype}",
        dtype,
        lambda shape: _rows(shape) * shape[1] * size,
        lambda values: pack_groups(values.numpy().astype(dtype)),
        rows_multiple=TILE,
    )


def _routed(layout: Layout) -> Layout:
    """`layout` of each expert's matrix, one after the other."""
    return Layout(
        f"routed-{layout.name}",
        layout.dtype,
        lambda shape: shape[0] * layout.size(shape[1:]),
        lambda weight: np.stack([layout.pack(each) for each in weight]),
        rows_multiple=1,
    )


def _rows(shape: tuple[int, ...]) -> int:
    return -(-shape[0] // TILE) * TILE


def _float_inputs(k: int, weights: FloatWeights) -> int:
    """Bytes of one packed output channel."""
    return weights.lines(k) * weights.depth * weights.dtype.itemsize
