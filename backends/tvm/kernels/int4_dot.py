"""Products of unsigned nibbles and int8 activations, one class per kind of CPU.

A line is 64 bytes: of 16 output channels, 4 bytes each, whose low nibbles belong to 4 input
channels and whose high nibbles to the 4 that are 32 further on. A step multiplies one half of a
line; eight steps make a run of 32 input channels, whose partial sums `fold` makes int32.

- `VnniNibbleDot` (vpdpbusd), `SdotNibbleDot` (Arm's sdot): partial sums are int32 at once.
- `PairNibbleDot` (AVX2): vpmaddubsw leaves sums of two products in int16; eight of them are at most
  8 * 2 * 15 * 127 = 30480 and still fit, so that the widening vpmaddwd is paid once in a run.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.tirx.script import builder as T

from graphwright.backends.tvm.kernels.int8_dot import QUAD
from graphwright.backends.tvm.kernels.kernel import Expr
from graphwright.backends.tvm.kernels.vector import constant, span
from graphwright.backends.tvm.target import Cpu

__all__ = ["NIBBLE_LINE", "RUN", "UNIT", "NibbleDot", "nibble_dot_for", "nibbles"]

NIBBLE_LINE = 64  # bytes of 16 output channels x 2 x QUAD input channels
RUN = 32  # input channels whose products are added before `fold`
UNIT = 2 * RUN  # input channels of 8 lines: a run of low and a run of high nibbles


class NibbleDot:
    """Plain vector code, for CPUs without a special instruction."""

    lanes = 4  # channels of a vector of sums
    partial = ("int32", 4)  # dtype and lanes of a vector of partial sums
    most_partial = 16  # vectors of partial sums that registers hold beside the operands
    crowded = False  # whether they leave no registers for other sums

    def weights(self, weight: Expr, first: Expr, high: bool) -> Any:
        """The operand for `lanes` channels in memory from `first` on; several rows use it."""
        bytes_ = (weight[T.ramp(first + i, QUAD, self.lanes)] for i in range(QUAD))
        halves = (nibbles(each, self.lanes, high) for each in bytes_)
        return [T.bind(tirx.Cast(f"int32x{self.lanes}", each)) for each in halves]

    def activations(self, x: Expr, first: Expr) -> Any:
        """The operand for x[first : first + 4]; several channels use it."""
        values = (tirx.Cast("int32", x[first + i]) for i in range(QUAD))
        return [T.bind(tirx.Broadcast(value, self.lanes)) for value in values]

    def add(self, partial: Expr, weights: Any, activations: Any) -> Expr:
        """partial + the four products of each channel."""
        for weight, activation in zip(weights, activations, strict=True):
            partial = partial + weight * activation
        return partial

    def fold(self, partial: Expr) -> Expr:
        """The sums of a run as int32, one for each of `lanes` channels."""
        return partial

    def zeros(self, points: Expr, x_sum: Expr) -> Expr:
        """int32 zero points, from 0 to 255, times Σ x of a group of at most 128 inputs."""
        return points * x_sum

    def start(self, total: Expr, lanes: int) -> Expr:
        """`lanes` int32 `total` as what the partial sums of a run start from to have it added."""
        return total


class PairNibbleDot(NibbleDot):
    lanes = 8
    partial = ("int16", 16)
    most_partial = 10
    crowded = True

    def weights(self, weight: Expr, first: Expr, high: bool) -> Any:
        return T.bind(nibbles(weight[span(first, 32)], 32, high))

    def activations(self, x: Expr, first: Expr) -> Any:
        return T.bind(_quads(x, first, self.lanes))

    def add(self, partial: Expr, weights: Any, activations: Any) -> Expr:
        name = "llvm.x86.avx2.pmadd.ub.sw"
        return partial + T.call_llvm_pure_intrin("int16x16", name, weights, activations)

    def fold(self, partial: Expr) -> Expr:
        ones = constant(1, 16, "int16")
        return T.call_llvm_pure_intrin("int32x8", "llvm.x86.avx2.pmadd.wd", partial, ones)

    def zeros(self, points: Expr, x_sum: Expr) -> Expr:
        # vpmulld costs twice as much; a Σ x fits into the lower 16 bits, points leave the upper 0
        halves = (tirx.reinterpret("int16x16", each) for each in (points, x_sum))
        return T.call_llvm_pure_intrin("int32x8", "llvm.x86.avx2.pmadd.wd", *halves)

    def start(self, total: Expr, lanes: int) -> Expr:
        """What the int16 pairs of a run start from to have int32 `total`, -8 * Σ x, added to them.

        All of it goes to the upper one. Products of the lower one's inputs and q + 8 are at most
        30480; those of the upper one's and q, less 8 times the inputs of the lower one, at most
        2 * 8 * 16 * 127 = 32512.
        """
        return tirx.shift_left(total, constant(16, lanes, "int32"))


class SdotNibbleDot(NibbleDot):
    def weights(self, weight: Expr, first: Expr, high: bool) -> Any:
        return T.bind(tirx.reinterpret("int8x16", nibbles(weight[span(first, 16)], 16, high)))

    def activations(self, x: Expr, first: Expr) -> Any:
        return T.bind(_quads(x, first, self.lanes))

    def add(self, partial: Expr, weights: Any, activations: Any) -> Expr:
        name = "llvm.aarch64.neon.sdot"
        return T.call_llvm_pure_intrin("int32x4", name, partial, weights, activations)


class VnniNibbleDot(NibbleDot):
    """On vectors of 16 (AVX-512) or 8 lanes (AVX-VNNI)."""

    def __init__(self, lanes: int = 16) -> None:
        self.lanes, self.partial = lanes, ("int32", lanes)

    def weights(self, weight: Expr, first: Expr, high: bool) -> Any:
        size = self.lanes * QUAD
        return T.bind(nibbles(weight[span(first, size)], size, high))

    def activations(self, x: Expr, first: Expr) -> Any:
        return T.bind(_quads(x, first, self.lanes))

    def add(self, partial: Expr, weights: Any, activations: Any) -> Expr:
        name = f"llvm.x86.avx512.vpdpbusd.{self.lanes * 32}"
        return T.call_llvm_pure_intrin(f"int32x{self.lanes}", name, partial, weights, activations)


def nibble_dot_for(cpu: Cpu) -> NibbleDot:
    """The fastest for `cpu`."""
    if cpu.vnni:
        return VnniNibbleDot(cpu.lanes)
    if "avx2" in cpu.features:
        return PairNibbleDot()
    return SdotNibbleDot() if "asimddp" in cpu.features else NibbleDot()


def nibbles(values: Expr, lanes: int, high: bool) -> Expr:
    """The high or the low four bits of `lanes` bytes."""
    if high:
        return tirx.shift_right(values, constant(4, lanes, "uint8"))
    return values & constant(15, lanes, "uint8")


def _quads(x: Expr, first: Expr, lanes: int) -> Expr:
    quad = tirx.reinterpret("int32", x[span(first, QUAD)])
    return tirx.reinterpret(f"int8x{lanes * QUAD}", tirx.Broadcast(quad, lanes))
