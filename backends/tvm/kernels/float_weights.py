"""Float weights in memory: float32, bfloat16 or float16 tiles, read as float32.

Packed weights are tiles of 16 output channels, made of lines of 64 bytes: all channels of a tile
for one input channel in float32, for two in 16 bits. What the two are to each other is what is
cheapest to convert in registers: float16 has one row of 16 channels after the other, to convert
as it lies there (vcvtph2ps, fcvtl); bfloat16, the upper half of a float32, has the two of a channel
side by side, as one shift and one mask then make two vectors of a load.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from tvm import tirx
from tvm.tirx.script import builder as T

from graphwright.backends.tvm.kernels.kernel import Expr
from graphwright.backends.tvm.kernels.loops import load, quotient, remainder
from graphwright.backends.tvm.kernels.matmul import TILE
from graphwright.backends.tvm.kernels.vector import constant, vector_type

__all__ = ["BFLOAT16", "FLOAT16", "FLOAT32", "FloatWeights", "pack_float", "pack_routed_float"]


@dataclass(frozen=True)
class FloatWeights:
    """A dtype of packed weights; as plain vector code, which every CPU has instructions for."""

    name: str  # as recipes have it
    dtype: torch.dtype
    storage: str  # TVM's type of an element of packed weights
    depth: int  # input channels in a line

    @staticmethod
    def of(dtype: torch.dtype) -> FloatWeights:
        """The one for weights that a program has as `dtype`; float32 for any not listed here."""
        return {torch.bfloat16: BFLOAT16, torch.float16: FLOAT16}.get(dtype, FLOAT32)

    @property
    def paired(self) -> bool:
        """Do the two input channels of a line lie side by side for each output channel?"""
        return self.storage == "int32"

    @property
    def line(self) -> int:
        """Elements of storage in a line."""
        return TILE * self.depth * self.dtype.itemsize // np.dtype(self.storage).itemsize

    def lines(self, k: int) -> int:
        """Lines of a tile of K input channels."""
        return -(-k // self.depth)

    def tile_size(self, k: int) -> int:
        """Elements of storage in a tile of K input channels."""
        return self.lines(k) * self.line

    def tile_bytes(self, k: int) -> int:
        """Bytes of the same."""
        return self.tile_size(k) * np.dtype(self.storage).itemsize

    def vectors(self, weight: Expr, line: Expr, part: int, lanes: int, count: int) -> list[Expr]:
        """float32 channels [part, part + lanes) for the first `count` input channels of a line.

        `line`: the element at which it starts.
        """
        if self.paired:
            pairs = T.bind(load(weight, line + part, lanes))
            return [T.bind(_half(pairs, number, lanes)) for number in range(count)]
        values = [load(weight, line + number * TILE + part, lanes) for number in range(count)]
        return [T.bind(_widened(value, self.storage, lanes)) for value in values]

    def element(self, weight: Expr, k: int, row: Expr, column: Expr) -> Expr:
        """weight[row, column] of a packed [N, K], as float32."""
        tile = quotient(row, TILE) * self.tile_size(k)
        line = tile + quotient(column, self.depth) * self.line
        channel, number = remainder(row, TILE), remainder(column, self.depth)
        if self.paired:
            word = weight[line + channel]
            high = tirx.bitwise_and(word, tirx.const(-65536, "int32"))
            bits = tirx.Select(number == 0, tirx.shift_left(word, tirx.const(16, "int32")), high)
            return tirx.reinterpret("float32", bits)
        return _widened(weight[line + number * TILE + channel], self.storage, 1)

    def plain(self, weight: Expr, first: Expr, lanes: int) -> Expr:
        """weight[first : first + lanes] of weights that are not packed, as float32.

        They are of dtype `plain_storage`.
        """
        value = load(weight, first, lanes)
        if not self.paired:
            return _widened(value, self.storage, lanes)
        bits = tirx.Cast(vector_type("int32", lanes), value)
        return _half(bits, 0, lanes)

    @property
    def plain_storage(self) -> str:
        """TVM's type of an element of weights that are not packed."""
        return "uint16" if self.paired else self.storage


FLOAT32 = FloatWeights("f32", torch.float32, "float32", 1)
BFLOAT16 = FloatWeights("bf16", torch.bfloat16, "int32", 2)
FLOAT16 = FloatWeights("f16", torch.float16, "float16", 2)


def pack_float(weight: torch.Tensor, weights: FloatWeights) -> np.ndarray:
    """[N, K] -> [ceil(N/16), lines, elements of a line], zeros behind the last channels.

    float32: [ceil(N/16), K, 16]; float16: [ceil(N/16), ceil(K/2), (2, 16)]; bfloat16: [ceil(N/16),
    ceil(K/2), 16] int32, the first of the two input channels in the low half.
    """
    n, k = weight.shape
    tiles, lines, depth = -(-n // TILE), weights.lines(k), weights.depth
    behind = (0, lines * depth - k, 0, tiles * TILE - n)
    padded = torch.nn.functional.pad(weight.to(weights.dtype), behind)
    order = (0, 2, 1, 3) if weights.paired else (0, 2, 3, 1)
    flat = padded.reshape(tiles, TILE, lines, depth).permute(order).reshape(tiles, lines, -1)
    return (flat.view(torch.int32) if weights.paired else flat).contiguous().numpy()


def pack_routed_float(weight: torch.Tensor, weights: FloatWeights) -> np.ndarray:
    """[E, N, K] -> what pack_float makes of each expert, one after the other."""
    return np.stack([pack_float(each, weights) for each in weight])


def _widened(value: Expr, storage: str, lanes: int) -> Expr:
    return value if storage == "float32" else tirx.Cast(vector_type("float32", lanes), value)


def _half(pairs: Expr, number: int, lanes: int) -> Expr:
    """The bfloat16 in the low (0) or high (1) half of each int32, as float32."""
    if number:
        bits = tirx.bitwise_and(pairs, constant(-65536, lanes, "int32"))
    else:
        bits = tirx.shift_left(pairs, constant(16, lanes, "int32"))
    return tirx.reinterpret(vector_type("float32", lanes), bits)
