"""Products of four int8 weights and activations added to int32 lanes, one class per kind of CPU.

`SdotDot` (Arm's sdot) multiplies signed bytes. x86 multiplies unsigned by signed bytes only; what
each class does about the sign:

- `VnniDot` (vpdpbusd): weight + 128 is the unsigned operand; the sum starts from -128 * Σ x, which
  quantize_rows leaves behind each row.
- `SignDot` (AVX2): |weight| times x with the weight's sign (vpsignb).
- `FlipDot` (AVX2): |weight| times x, its bits flipped where the weight is negative: -x - 1 for -x.
  The sum starts from Σ |weight| over the negative ones, worth its own pass when many rows share it.
  vpsignb competes with the multiplications for two ports, exclusive or does not: 1.25 times faster
  on Zen 4.

AVX2 first adds two products in int16: at most 2 * 127 * 128, so nothing saturates.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.tirx.script import builder as T

from graphwright.backends.tvm.kernels.kernel import Expr
from graphwright.backends.tvm.kernels.vector import constant, span
from graphwright.backends.tvm.target import Cpu

__all__ = ["LINE", "QUAD", "Dot", "FlipDot", "SdotDot", "SignDot", "VnniDot", "dot_for"]

QUAD = 4  # input channels whose products one lane adds up
LINE = 64  # bytes of 16 output channels x QUAD input channels in packed weights


class Dot:
    """Plain vector code, for CPUs without a special instruction."""

    lanes = 4
    unroll = 1  # lines per iteration; LLVM reorders integer sums within one, and then spills
    starts_from_rows = False  # the sum starts from a value per row: -128 * Σ x
    starts_from_channels = False  # the sum starts from a value per channel: `negatives`

    def weights(self, weight: Expr, first: Expr) -> Any:
        """The operand for `lanes` channels in memory from `first` on; several rows use it."""
        strided = (weight[T.ramp(first + i, QUAD, self.lanes)] for i in range(QUAD))
        return [T.bind(tirx.Cast(f"int32x{self.lanes}", values)) for values in strided]

    def activations(self, x: Expr, first: Expr) -> Any:
        """The operand for x[first : first + 4]; several channels use it."""
        values = (tirx.Cast("int32", x[first + i]) for i in range(QUAD))
        return [T.bind(tirx.Broadcast(value, self.lanes)) for value in values]

    def add(self, total: Expr, weights: Any, activations: Any) -> Expr:
        """total + the four products of each lane."""
        for weight, activation in zip(weights, activations, strict=True):
            total = total + weight * activation
        return total

    def negatives(self, total: Expr, weights: Any) -> Expr:
        """total + Σ |weight| over the negative ones of each lane."""
        raise NotImplementedError

    def _quads(self, x: Expr, first: Expr) -> Expr:
        quad = tirx.reinterpret("int32", x[span(first, QUAD)])
        return tirx.reinterpret(f"int8x{self.lanes * QUAD}", tirx.Broadcast(quad, self.lanes))


class SignDot(Dot):
    lanes = 8

    def weights(self, weight: Expr, first: Expr) -> Any:
        signed = T.bind(weight[span(first, 32)])
        return signed, T.bind(_magnitude(signed))

    def activations(self, x: Expr, first: Expr) -> Any:
        return T.bind(self._quads(x, first))

    def add(self, total: Expr, weights: Any, activations: Any) -> Expr:
        signed, magnitude = weights
        x = T.call_llvm_pure_intrin("int8x32", "llvm.x86.avx2.psign.b", activations, signed)
        return total + _add_quads(magnitude, x)


class FlipDot(Dot):
    lanes = 8
    starts_from_channels = True

    def weights(self, weight: Expr, first: Expr) -> Any:
        signed = T.bind(weight[span(first, 32)])
        negative = tirx.shift_right(signed, constant(7, 32, "int8"))
        return T.bind(negative), T.bind(_magnitude(signed))

    def activations(self, x: Expr, first: Expr) -> Any:
        return T.bind(self._quads(x, first))

    def add(self, total: Expr, weights: Any, activations: Any) -> Expr:
        negative, magnitude = weights
        return total + _add_quads(magnitude, activations ^ negative)

    def negatives(self, total: Expr, weights: Any) -> Expr:
        negative, magnitude = weights
        return total - _add_quads(magnitude, negative)


class SdotDot(Dot):
    lanes = 4
    unroll = 4

    def weights(self, weight: Expr, first: Expr) -> Any:
        return T.bind(weight[span(first, 16)])

    def activations(self, x: Expr, first: Expr) -> Any:
        return T.bind(self._quads(x, first))

    def add(self, total: Expr, weights: Any, activations: Any) -> Expr:
        name = "llvm.aarch64.neon.sdot"
        return T.call_llvm_pure_intrin("int32x4", name, total, weights, activations)


class VnniDot(Dot):
    """On vectors of 16 (AVX-512) or 8 lanes (AVX-VNNI)."""

    unroll = 4
    starts_from_rows = True

    def __init__(self, lanes: int = 16) -> None:
        self.lanes = lanes

    def weights(self, weight: Expr, first: Expr) -> Any:
        size = self.lanes * QUAD
        return T.bind(weight[span(first, size)] ^ constant(-128, size, "int8"))

    def activations(self, x: Expr, first: Expr) -> Any:
        return T.bind(self._quads(x, first))

    def add(self, total: Expr, weights: Any, activations: Any) -> Expr:
        name = f"llvm.x86.avx512.vpdpbusd.{self.lanes * 32}"
        return T.call_llvm_pure_intrin(f"int32x{self.lanes}", name, total, weights, activations)


def dot_for(cpu: Cpu, many_rows: bool) -> Dot:
    """The fastest for `cpu` when a tile of weights serves `many_rows` or few."""
    if cpu.vnni:
        return VnniDot(cpu.lanes)
    if "avx2" in cpu.features:
        return FlipDot() if many_rows else SignDot()
    return SdotDot() if "asimddp" in cpu.features else Dot()


def _magnitude(signed: Expr) -> Expr:
    return T.call_llvm_pure_intrin("int8x32", "llvm.abs", signed, tirx.const(False, "bool"))


def _add_quads(unsigned: Expr, signed: Expr) -> Expr:
    """The sums of four products, unsigned by signed bytes, as int32x8."""
    pairs = T.call_llvm_pure_intrin("int16x16", "llvm.x86.avx2.pmadd.ub.sw", unsigned, signed)
    ones = constant(1, 16, "int16")
    return T.call_llvm_pure_intrin("int32x8", "llvm.x86.avx2.pmadd.wd", pairs, ones)
