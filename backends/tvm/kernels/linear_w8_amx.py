"""Products by 8-bit weights in AMX's tile registers: 16 rows by 16 channels by 64 inputs at once.

A tile register is 16 rows of 64 bytes. Sixteen quantized rows of activations are one as they lie,
and so are sixteen lines of a packed weight: 64 input channels of 16 output channels, four to a
line, which is the order that tdpbssd wants. Two of each make four sums a turn: registers 0 to 3
hold those, 4 and 5 the activations, 6 and 7 the weights.
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm import tirx
from tvm.tirx.script import builder as T

from graphwright.backends.tvm.kernels.int8_dot import LINE, QUAD
from graphwright.backends.tvm.kernels.kernel import Expr
from graphwright.backends.tvm.kernels.linear_w8 import ProductW8
from graphwright.backends.tvm.kernels.matmul import TILE
from graphwright.backends.tvm.kernels.quantize_rows import padded, row_size

__all__ = ["HEIGHT", "ProductW8Amx"]

HEIGHT = 16  # rows of a tile register
DEPTH = LINE  # input channels of a row of one
LINES = DEPTH // QUAD  # of packed weights in one
PAIR = 2  # tile registers of activations, and of weights
_X, _WEIGHT = PAIR * PAIR, PAIR * PAIR + PAIR  # the first registers of each
_PALETTE, _WIDTHS = 1, 0x00400040  # of a configuration: two registers' bytes in a row


@dataclass(frozen=True)
class ProductW8Amx(ProductW8):
    """ProductW8 whose blocks have up to 32 rows; one scale for each row and channel."""

    def multiply(self, rows: list[Expr], tiles: list[Expr]) -> None:
        """Sums up the block of these row and tile numbers into `sums`.

        Row numbers follow each other, but that those behind the last row repeat it: registers have
        no such rows then.
        """
        parts = [rows[first : first + HEIGHT] for first in range(0, len(rows), HEIGHT)]
        _configure([T.bind(part[-1] - part[0] + 1) for part in parts])
        stride = row_size(self.k, self.group)
        offsets = [T.bind(part[0] * stride) for part in parts]
        bases = [T.bind(tile * (padded(self.k) * TILE)) for tile in tiles]
        for first in range(0, len(tiles), PAIR):
            pair = bases[first : first + PAIR]
            self._sum_up(offsets, stride, pair)
            for i in range(len(parts)):
                for j in range(len(pair)):
                    at = (i * HEIGHT * len(tiles) + first + j) * TILE
                    place = T.address_of(self.sums[at])
                    _emit("tilestored64", i * PAIR + j, place, T.int64(len(tiles) * TILE * 4))
        _emit("tilerelease")

    def _sum_up(self, offsets: list[Expr], stride: int, bases: list[Expr]) -> None:
        """Activations from `offsets` on times weights from `bases` on, in registers 0 to 3."""
        pairs = [(i, j) for i in range(len(offsets)) for j in range(len(bases))]
        for i, j in pairs:
            _emit("tilezero", i * PAIR + j)
        with T.serial(0, padded(self.k) // DEPTH) as step:
            for i, offset in enumerate(offsets):
                place = T.address_of(self.x[offset + step * DEPTH])
                _emit("tileloadd64", _X + i, place, T.int64(stride))
            for j, base in enumerate(bases):
                place = T.address_of(self.weight[base + step * (LINES * LINE)])
                _emit("tileloadd64", _WEIGHT + j, place, T.int64(LINE))
            for i, j in pairs:
                _emit("tdpbssd", i * PAIR + j, _X + i, _WEIGHT + j)


def _configure(heights: list[Expr]) -> None:
    """Gives the registers their shapes: 64 bytes in each row, `heights` rows of activations."""
    first, last = (tirx.Cast("int32", each) for each in (heights[0], heights[-1]))
    sums = first * 0x0101 + last * 0x01010000
    whole = HEIGHT * 0x01010000
    words = [_PALETTE, 0, 0, 0, *[_WIDTHS] * 4, 0, 0, 0, 0, sums, first + last * 256 + whole, 0, 0]
    shapes = T.alloc_buffer((len(words),), "int32", layout=None)
    for i, word in enumerate(words):
        T.buffer_store(shapes, word, [i])
    _emit("ldtilecfg", T.address_of(shapes[0]))


def _emit(name: str, *operands: int | Expr) -> None:
    """One instruction of AMX; numbers are those of tile registers."""
    given = (tirx.const(each, "int8") if isinstance(each, int) else each for each in operands)
    T.evaluate(T.call_llvm_intrin("void", f"llvm.x86.{name}", *given))
