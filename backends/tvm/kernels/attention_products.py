"""Products of attention: query rows with keys, weights with values, as the cache holds them.

Keys and values of a float type are multiplied as float32, one channel (or one token) at a step.
Those of int8 are multiplied as integers, two at a step: queries and weights become int16, each row
with a scale of its own (attention_integers.py), and only sums become float32: a core with AVX2 gets
through 1.7 times as many products. A channel of a query is off by 2^-16 of the largest, a weight by
2^-16 of the largest in its chunk, where keys and values were rounded to 2^-8: outputs differ by
less than a hundredth of what the rounding of the cache makes them differ.

A step's operand is one float32 of memory either way: a float, or the bits of two int16.
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm import tirx
from tvm.tirx.script import builder as T

from graphwright.backends.tvm.kernels.kernel import Expr
from graphwright.backends.tvm.kernels.kv_values import load_values
from graphwright.backends.tvm.kernels.loops import load, spread
from graphwright.backends.tvm.kernels.vector import constant, fma, vector_type

__all__ = ["FloatProducts", "PairProducts"]

_PMADDWD = {8: "llvm.x86.avx2.pmadd.wd", 16: "llvm.x86.avx512.pmaddw.d.512"}


@dataclass(frozen=True)
class FloatProducts:
    """One float32 product of each lane at a step, of the cache's `dtype`.

    depth: what a step takes of a key's channels, or of tokens. unroll: steps that are emitted
    together. waits: does an addition take so long that the next one should be to another sum?
    """

    dtype: str

    depth = 1
    sums = "float32"
    unroll = 1
    waits = True

    def load(self, cache: Expr, first: Expr, width: int) -> Expr:
        """The operand of `width` keys (or channels of values) from step `first`'s start on."""
        return T.bind(load_values(cache, first, width, self.dtype))

    def spread(self, value: Expr, width: int) -> Expr:
        """The operand that all lanes share."""
        return T.bind(spread(value, width))

    def add(self, total: Expr, one: Expr, other: Expr, width: int) -> Expr:
        """total + the products of each lane."""
        return fma(one, other, total, width)

    def real(self, total: Expr, width: int) -> Expr:
        """Sums as float32."""
        return total


@dataclass(frozen=True)
class PairProducts:
    """Two products of int16 numbers of each lane at a step, added to int32 sums. `pmaddwd`: by that
    instruction, which LLVM merges with the addition (vpdpwssd) where there is one for both."""

    pmaddwd: bool

    depth = 2
    sums = "int32"
    unroll = 2  # a loop of one step costs a third more
    waits = False

    def load(self, cache: Expr, first: Expr, width: int) -> Expr:
        pairs = load(cache, first, 2 * width)
        return T.bind(tirx.Cast(f"int16x{2 * width}", pairs))

    def spread(self, value: Expr, width: int) -> Expr:
        bits = tirx.reinterpret("int32", value)
        return T.bind(tirx.reinterpret(f"int16x{2 * width}", spread(bits, width)))

    def add(self, total: Expr, one: Expr, other: Expr, width: int) -> Expr:
        if self.pmaddwd and width in _PMADDWD:
            products = T.call_llvm_pure_intrin(f"int32x{width}", _PMADDWD[width], one, other)
            return total + products
        (low, high), (other_low, other_high) = (_halves(each, width) for each in (one, other))
        return total + low * other_low + high * other_high

    def real(self, total: Expr, width: int) -> Expr:
        return tirx.Cast(vector_type("float32", width), total)


def _halves(pairs: Expr, width: int) -> tuple[Expr, Expr]:
    """Both int16 of each of `width` pairs as int32."""
    bits = tirx.reinterpret(vector_type("int32", width), pairs)
    sixteen = constant(16, width, "int32")
    low = T.shift_right(T.shift_left(bits, sixteen), sixteen)
    return T.bind(low), T.bind(T.shift_right(bits, sixteen))
