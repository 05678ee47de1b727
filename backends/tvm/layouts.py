"""The packed layouts of the matrix kernels, as the blob table needs them."""

from __future__ import annotations

import numpy as np

from graphwright.backends.tvm.blobs import Layout
from graphwright.backends.tvm.kernels.linear_f32 import pack_f32
from graphwright.backends.tvm.kernels.linear_w8 import pack_w8
from graphwright.backends.tvm.kernels.matmul import TILE
from graphwright.backends.tvm.kernels.quantize_rows import padded
from graphwright.backends.tvm.kernels.routed_linear_f32 import pack_routed_f32
from graphwright.backends.tvm.kernels.routed_linear_w8 import pack_routed_w8

__all__ = [
    "linear_f32_layout",
    "linear_w8_layout",
    "linear_w8_scales",
    "routed_f32_layout",
    "routed_w8_layout",
    "routed_w8_scales",
]


def linear_f32_layout() -> Layout:
    """float32 tiles of 16 output channels: [ceil(N / 16), K, 16]."""
    return Layout(
        "linear-f32",
        "float32",
        lambda shape: _rows(shape) * shape[1] * 4,
        lambda weight: pack_f32(weight.float().numpy()),
        rows_multiple=TILE,
    )


def linear_w8_layout() -> Layout:
    """int8 tiles of 16 output by 4 input channels: [ceil(N / 16), K' / 4, 16, 4]."""
    return Layout(
        "linear-w8",
        "int8",
        lambda shape: _rows(shape) * padded(shape[1]),
        lambda weight: pack_w8(weight.numpy(), np.zeros(len(weight), np.float32))[0],
        rows_multiple=TILE,
    )


def linear_w8_scales() -> Layout:
    """The scales of such tiles: float32 [ceil(N / 16), groups, 16]."""
    return Layout(
        "linear-w8-scales",
        "float32",
        lambda shape: _rows(shape) * shape[1] * 4,
        lambda scale: pack_w8(np.zeros((len(scale), 4), np.int8), scale.float().numpy())[1],
        rows_multiple=TILE,
    )


def routed_f32_layout() -> Layout:
    """Of each expert what linear_f32_layout says: [E, ceil(N / 16), K, 16]."""
    return Layout(
        "routed-linear-f32",
        "float32",
        lambda shape: shape[0] * _rows(shape[1:]) * shape[2] * 4,
        lambda weight: pack_routed_f32(weight.float().numpy()),
        rows_multiple=1,
    )


def routed_w8_layout() -> Layout:
    """Of each expert what linear_w8_layout says: [E, ceil(N / 16), K' / 4, 16, 4]."""
    return Layout(
        "routed-linear-w8",
        "int8",
        lambda shape: shape[0] * _rows(shape[1:]) * padded(shape[2]),
        lambda weight: pack_routed_w8(weight.numpy(), np.zeros(weight.shape[:2], np.float32))[0],
        rows_multiple=1,
    )


def routed_w8_scales() -> Layout:
    """Of each expert what linear_w8_scales says: float32 [E, ceil(N / 16), groups, 16]."""
    return Layout(
        "routed-linear-w8-scales",
        "float32",
        lambda shape: shape[0] * _rows(shape[1:]) * shape[2] * 4,
        lambda scale: pack_routed_w8(
            np.zeros((*scale.shape[:2], 4), np.int8), scale.float().numpy()
        )[1],
        rows_multiple=1,
    )


def _rows(shape: tuple[int, ...]) -> int:
    return -(-shape[0] // TILE) * TILE
