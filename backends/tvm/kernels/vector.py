"""Vector math as expressions: exp, tanh, erf and activations made of them, without libm.

Each function takes and returns a float32 expression of `lanes` lanes (a scalar for 1) and works on
any target: only generic LLVM intrinsics are used. NaN stays NaN. The rational approximations were
fitted to minimise the relative error (Sanathanan-Koerner iteration with Lawson's weights); the
errors in the docstrings are measured in float32. `let` is cheap to compile but not free: TVM's code
generator expands what it binds, so keep chains of it short, and never bind a tirx.Select (seconds).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence

from tvm import tirx
from tvm.tirx.script import builder as T

from graphwright.backends.tvm.kernels.kernel import Expr

__all__ = [
    "ACTIVATIONS",
    "activate",
    "at_least",
    "at_most",
    "constant",
    "fma",
    "lanes_of",
    "let",
    "reduce_lanes",
    "span",
    "vector_type",
    "verf",
    "vexp",
    "vexp2_of_negative",
    "vexpm1",
    "vgelu",
    "vgelu_tanh",
    "vrelu",
    "vrelu2",
    "vsigmoid",
    "vlog1p_of_unit",
    "vsilu",
    "vsoftplus",
    "vtanh",
]


def vector_type(dtype: str, lanes: int) -> str:
    """TVM's name of the type: float32x8, or float32 for one lane."""
    return dtype if lanes == 1 else f"{dtype}x{lanes}"


def constant(value: float, lanes: int, dtype: str = "float32") -> Expr:
    """`value` in every lane."""
    scalar = tirx.const(value, dtype)
    return scalar if lanes == 1 else tirx.Broadcast(scalar, lanes)


def lanes_of(value: Expr) -> int:
    """How many lanes an expression has."""
    return int(value.ty.dtype.lanes)


def span(first: Expr, lanes: int) -> Expr:
    """The index of `lanes` consecutive elements from `first` on."""
    return first if lanes == 1 else T.ramp(first, 1, lanes)


def let(value: Expr, body: Callable[[Expr], Expr]) -> Expr:
    """body(value) with `value` computed once; an expression used twice is emitted twice."""
    variable = tirx.Var("value", value.ty)
    return tirx.Let(variable, value, body(variable))


def fma(a: Expr, b: Expr, c: Expr, lanes: int) -> Expr:
    """a * b + c, rounded once."""
    return T.call_llvm_pure_intrin(vector_type("float32", lanes), "llvm.fma", a, b, c)


def reduce_lanes(operation: str, x: Expr, dtype: str) -> Expr:
    """The scalar that LLVM's ``vector.reduce.<operation>`` makes of a vector of `dtype`."""
    return T.call_llvm_pure_intrin(dtype, f"llvm.vector.reduce.{operation}", x)


def polynomial(x: Expr, coefficients: Sequence[float], lanes: int) -> Expr:
    """Σ coefficients[i] * xⁱ by Horner's rule; `x` must be a variable."""
    total = constant(coefficients[-1], lanes)
    for coefficient in coefficients[-2::-1]:
        total = fma(total, x, constant(coefficient, lanes), lanes)
    return total


def at_least(x: Expr, low: float, lanes: int) -> Expr:
    """max(x, low); NaN stays NaN, which T.max does not promise."""
    return T.call_llvm_pure_intrin(
        vector_type("float32", lanes), "llvm.maximum", x, constant(low, lanes)
    )


def at_most(x: Expr, high: float, lanes: int) -> Expr:
    """min(x, high); NaN stays NaN, which T.min does not promise."""
    return T.call_llvm_pure_intrin(
        vector_type("float32", lanes), "llvm.minimum", x, constant(high, lanes)
    )


def vexp(x: Expr, lanes: int) -> Expr:
    """eˣ within 1 ulp; 0 below x = -86.99 (no subnormal results), infinity above 88.72.

    x = n ln 2 + r with |r| <= ln 2 / 2; n + 126 appears in the low bits of a sum with 1.5 * 2²³ +
    126 and becomes the exponent of 2ⁿ⁻¹, which is 0 for n = -126; 2eʳ is a polynomial of degree 6.
    """
    magic = constant(1.5 * 2**23 + 126, lanes)
    ln2_high = struct.unpack("f", struct.pack("f", math.log(2)))[0]
    ln2_low = math.log(2) - ln2_high
    series = (1.0, 1.0, 0.499999934, 0.166665204, 0.0416683908, 0.00836874512, 0.001381454)
    twice = [2 * coefficient for coefficient in series]
    integer, real = vector_type("int32", lanes), vector_type("float32", lanes)

    def scaled(r: Expr, shifted: Expr) -> Expr:
        power = T.shift_left(tirx.reinterpret(integer, shifted), constant(23, lanes, "int32"))
        return polynomial(r, twice, lanes) * tirx.reinterpret(real, power)

    def reduced(x: Expr, shifted: Expr) -> Expr:
        def remainder(n: Expr) -> Expr:
            r = fma(n, constant(-ln2_high, lanes), x, lanes)
            return fma(n, constant(-ln2_low, lanes), r, lanes)

        return let(let(shifted - magic, remainder), lambda r: scaled(r, shifted))

    def split(x: Expr) -> Expr:
        shifted = fma(x, constant(1 / math.log(2), lanes), magic, lanes)
        return let(shifted, lambda shifted: reduced(x, shifted))

    return let(at_most(at_least(x, -87.4, lanes), 88.8, lanes), split)


def vexp2_of_negative(x: Expr, lanes: int) -> Expr:
    """2ˣ for x <= 0 within 2e-7 relative; 0 below x = -126.5.

    As vexp, in fewer steps: x = n + r is exact, and a polynomial of degree 5 is 2ʳ. n + 127 is the
    exponent, which is 0 for n = -127.
    """
    magic = constant(1.5 * 2**23 + 127, lanes)
    series = (1.0, 0.69314698, 0.24022242, 0.05550734, 0.00967151, 0.00132647)
    integer, real = vector_type("int32", lanes), vector_type("float32", lanes)

    def split(x: Expr) -> Expr:
        def scaled(shifted: Expr) -> Expr:
            power = T.shift_left(tirx.reinterpret(integer, shifted), constant(23, lanes, "int32"))
            remainder = x - (shifted - magic)
            value = let(remainder, lambda r: polynomial(r, series, lanes))
            return value * tirx.reinterpret(real, power)

        # a plain sum would be simplified as if it were exact: x - (x + magic - magic) to 0
        return let(fma(x, constant(1.0, lanes), magic, lanes), scaled)

    return let(at_least(x, -127.0, lanes), split)


def vlog1p_of_unit(x: Expr, lanes: int) -> Expr:
    """log(1 + x) for x in [0, 1] within 3e-7 relative: 2 artanh(x / (2 + x)), as a series."""
    series = [2 / (2 * power + 1) for power in range(8)]

    def form(x: Expr) -> Expr:
        def sum_of(s: Expr) -> Expr:
            return let(s * s, lambda square: s * polynomial(square, series, lanes))

        return let(x / (x + constant(2.0, lanes)), sum_of)

    return let(x, form)


def vsoftplus(x: Expr, lanes: int) -> Expr:
    """log(1 + e^x) = max(x, 0) + log(1 + e^-|x|)."""

    def form(x: Expr) -> Expr:
        size = T.call_llvm_pure_intrin(vector_type("float32", lanes), "llvm.fabs", x)
        power = vexp(size * constant(-1.0, lanes), lanes)
        return at_least(x, 0.0, lanes) + vlog1p_of_unit(power, lanes)

    return let(x, form)


def vtanh(x: Expr, lanes: int) -> Expr:
    """tanh x within 4e-7 relative, ±1 from |x| = 9.02 on: x P(x²) / Q(x²) of degrees 4 and 4."""
    numerator = (0.999999979, 0.133797025, 0.00349401615, 2.05831792e-05, 1.33186633e-08)
    denominator = (1.0, 0.467130178, 0.0258710033, 0.000328306271, 7.7618497e-07)
    return _odd_rational(x, 9.02, numerator, denominator, lanes)


def vexpm1(x: Expr, lanes: int) -> Expr:
    """exp x - 1 without cancellation: tanh(x / 2) * (exp x + 1)."""

    def form(x: Expr) -> Expr:
        half = vtanh(x * constant(0.5, lanes), lanes)
        return half * (vexp(x, lanes) + constant(1.0, lanes))

    return let(x, form)


def verf(x: Expr, lanes: int) -> Expr:
    """erf x within 4e-7 relative, ±1 from |x| = 3.92 on: x P(x²) / Q(x²) of degrees 6 and 4."""
    numerator = (
        *(1.12837911, 0.199923066, 0.0505731149, 0.00370152847),
        *(0.00014184712, -1.9577936e-06, 1.99237863e-08),
    )
    denominator = (1.0, 0.51050886, 0.11499779, 0.0143530591, 0.000956014676)
    return _odd_rational(x, 3.92, numerator, denominator, lanes)


def vsigmoid(x: Expr, lanes: int) -> Expr:
    """1 / (1 + e⁻ˣ) within 3e-7 relative."""
    one = constant(1.0, lanes)
    return one / (one + vexp(constant(0.0, lanes) - x, lanes))


def vsilu(x: Expr, lanes: int) -> Expr:
    """x * sigmoid(x)."""
    one = constant(1.0, lanes)
    return let(x, lambda x: x / (one + vexp(constant(0.0, lanes) - x, lanes)))


def vgelu(x: Expr, lanes: int) -> Expr:
    """x * Φ(x), by erf."""

    def product(x: Expr) -> Expr:
        half = constant(0.5, lanes) * x
        return half * (constant(1.0, lanes) + verf(x * constant(math.sqrt(0.5), lanes), lanes))

    return let(x, product)


def vgelu_tanh(x: Expr, lanes: int) -> Expr:
    """x * (1 + tanh(√(2/π) (x + 0.044715 x³))) / 2, which is x * sigmoid of twice that argument."""
    linear, cubic = math.sqrt(8 / math.pi), 0.044715 * math.sqrt(8 / math.pi)

    def product(x: Expr) -> Expr:
        slope = fma(x * x, constant(-cubic, lanes), constant(-linear, lanes), lanes)
        return x / (constant(1.0, lanes) + vexp(x * slope, lanes))

    return let(x, product)


def vrelu(x: Expr, lanes: int) -> Expr:
    """max(x, 0)."""
    return at_least(x, 0.0, lanes)


def vrelu2(x: Expr, lanes: int) -> Expr:
    """relu(x)²."""
    return let(vrelu(x, lanes), lambda positive: positive * positive)


ACTIVATIONS: dict[str, Callable[[Expr, int], Expr]] = {
    "silu": vsilu,
    "gelu": vgelu,
    "gelu_tanh": vgelu_tanh,
    "relu": vrelu,
    "relu2": vrelu2,
    "sigmoid": vsigmoid,
    "tanh": vtanh,
}


def activate(x: Expr, name: str | None, lanes: int) -> Expr:
    """The activation `name` of x; x itself for None or "none"."""
    return x if name in (None, "none") else ACTIVATIONS[name](x, lanes)


def _odd_rational(
    x: Expr, limit: float, numerator: Sequence[float], denominator: Sequence[float], lanes: int
) -> Expr:
    def quotient(x: Expr) -> Expr:
        def ratio(square: Expr) -> Expr:
            top = x * polynomial(square, numerator, lanes)
            return top / polynomial(square, denominator, lanes)

        return let(x * x, ratio)

    y = let(at_most(at_least(x, -limit, lanes), limit, lanes), quotient)
    return at_most(at_least(y, -1.0, lanes), 1.0, lanes)
