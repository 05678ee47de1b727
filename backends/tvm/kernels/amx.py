"""Sums of products in AMX's tile registers: up to 32 rows by 32 channels at once.

A tile register is 16 rows of 64 bytes. Sixteen quantized rows of activations are one as they lie,
and so are sixteen lines of int8 weights: 64 input channels of 16 output channels, four to a line,
which is the order that tdpbssd wants. Two of each make four sums a turn: registers 0 to 3 hold
those, 4 and 5 the activations, 6 and 7 the weights.
"""

from __future__ import annotations

from tvm import tirx
from tvm.tirx.script import builder as T

from graphwright.backends.tvm.kernels.int8_dot import LINE, QUAD
from graphwright.backends.tvm.kernels.kernel import Expr

__all__ = ["DEPTH", "HEIGHT", "PAIR", "begin_tiles", "end_tiles", "heights_of", "sum_up"]

HEIGHT = 16  # rows of a tile register
DEPTH = LINE  # input channels of a row of one
PAIR = 2  # tile registers of activations, and of weights
_X, _WEIGHT = PAIR * PAIR, PAIR * PAIR + PAIR  # the first registers of each
_PALETTE = 1  # of a configuration


def heights_of(rows: list[Expr]) -> list[Expr]:
    """How many of each 16 row numbers there are: those behind the last row repeat it."""
    parts = [rows[first : first + HEIGHT] for first in range(0, len(rows), HEIGHT)]
    return [T.bind(part[-1] - part[0] + 1) for part in parts]


def begin_tiles(heights: list[Expr], depth: int = DEPTH) -> None:
    """Gives the registers of this thread their shapes, for `heights` rows and `depth` inputs."""
    first, last = heights[0], heights[-1]
    both = 1 + (1 << 16)
    sums = first * 0x0101 + last * 0x01010000
    operands = first + last * 256 + depth // QUAD * 0x01010000
    widths = [LINE * both, LINE * both, depth * both, LINE * both]
    words = [_PALETTE, 0, 0, 0, *widths, 0, 0, 0, 0, sums, operands, 0, 0]
    shapes = T.alloc_buffer((len(words),), "int32", layout=None)
    for i, word in enumerate(words):
        T.buffer_store(shapes, word, [i])
    _emit("ldtilecfg", T.address_of(shapes[0]))


def end_tiles() -> None:
    """Lets go of the registers: threads that hold them take longer to switch."""
    _emit("tilerelease")


def sum_up(
    x: Expr, offsets: list[Expr], stride: int, weight: Expr, bases: list[Expr], steps: int,
    sums: Expr, places: list[list[int]], width: int, depth: int = DEPTH,
) -> None:  # fmt: skip
    """sums = Σ over steps * depth inputs of x * weight, int32, for a pair of tiles.

    offsets: where 16 rows of x begin, `stride` bytes apart; bases: where tiles of lines begin;
    places[i][j]: where the sums of rows i and tile j go, `width` elements a row.
    """
    pairs = [(i, j) for i in range(len(offsets)) for j in range(len(bases))]
    for i, j in pairs:
        _emit("tilezero", i * PAIR + j)
    with T.serial(0, steps) as step:
        for i, offset in enumerate(offsets):
            _emit("tileloadd64", _X + i, T.address_of(x[offset + step * depth]), T.int64(stride))
        for j, base in enumerate(bases):
            place = T.address_of(weight[base + step * (depth // QUAD * LINE)])
            _emit("tileloadd64", _WEIGHT + j, place, T.int64(LINE))
        for i, j in pairs:
            _emit("tdpbssd", i * PAIR + j, _X + i, _WEIGHT + j)
    for i, j in pairs:
        place = T.address_of(sums[places[i][j]])
        _emit("tilestored64", i * PAIR + j, place, T.int64(width * 4))


def _emit(name: str, *operands: int | Expr) -> None:
    """One instruction of AMX; numbers are those of tile registers."""
    given = (tirx.const(each, "int8") if isinstance(each, int) else each for each in operands)
    T.evaluate(T.call_llvm_intrin("void", f"llvm.x86.{name}", *given))
