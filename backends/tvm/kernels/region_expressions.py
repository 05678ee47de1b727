"""What each pointwise aten op computes for one element, as a scalar TVM expression.

An expression may be used twice only if it is a variable: functions get their operands as variables.
Most take vectors, too, all operands of as many lanes (`VECTORS`). LLVM vectorizes the loops around;
so transcendental functions come from vector.py where it has them, and from libm elsewhere (angles
of rotary embeddings need its argument reduction).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from tvm import tirx
from tvm.tirx.script import builder as T

from graphwright.backends.tvm.kernels import vector
from graphwright.backends.tvm.kernels.kernel import Expr
from graphwright.ir.errors import BackendError

__all__ = ["POINTWISE", "VECTORS", "cast", "constant", "largest", "smallest"]

Given = dict[str, Any]  # arguments by name: operands as expressions, parameters as Python values


def constant(value: Any, dtype: str) -> Expr:
    """A Python number as a constant of `dtype`."""
    if dtype.startswith("bool"):
        return tirx.const(bool(value), dtype)
    if dtype.startswith("float"):
        return tirx.const(float(value), dtype)
    return tirx.const(int(value), dtype)


def cast(value: Expr, dtype: str) -> Expr:
    """As torch's `.to`: to bool is != 0, to an integer truncates."""
    wanted = vector.vector_type(dtype, vector.lanes_of(value))
    if value.ty.dtype == wanted:
        return value
    if dtype == "bool":
        return tirx.NE(value, constant(0, str(value.ty.dtype)))
    return tirx.Cast(wanted, value)


def _is_float(value: Expr) -> bool:
    return str(value.ty.dtype).startswith("float")


def _like(value: Any, other: Expr) -> Expr:
    return constant(value, str(other.ty.dtype)) if isinstance(value, (int, float)) else value


def largest(a: Expr, b: Expr) -> Expr:
    """max; NaN wins, as in torch."""
    if _is_float(a):
        return T.call_llvm_pure_intrin(str(a.ty.dtype), "llvm.maximum", a, b)
    return tirx.max(a, b)


def smallest(a: Expr, b: Expr) -> Expr:
    if _is_float(a):
        return T.call_llvm_pure_intrin(str(a.ty.dtype), "llvm.minimum", a, b)
    return tirx.min(a, b)


def _both(a: Expr, b: Expr) -> Expr:
    return tirx.And(a, b) if _is_bool(a) else T.bitwise_and(a, b)


def _either(a: Expr, b: Expr) -> Expr:
    return tirx.Or(a, b) if _is_bool(a) else T.bitwise_or(a, b)


def _scaled(g: Given) -> Expr:
    """other * alpha."""
    alpha = g.get("alpha", 1)
    return g["other"] if alpha == 1 else g["other"] * _like(alpha, g["other"])


def _add(g: Given) -> Expr:
    return _either(g["self"], g["other"]) if _is_bool(g["self"]) else g["self"] + _scaled(g)


def _mul(g: Given) -> Expr:
    return _both(g["self"], g["other"]) if _is_bool(g["self"]) else g["self"] * g["other"]


def _opposite_signs(r: Expr, b: Expr) -> Expr:
    zero = _like(0, r)
    return tirx.Or(tirx.And(r < zero, b > zero), tirx.And(r > zero, b < zero))


def _floor_divide(g: Given) -> Expr:
    a, b = g["self"], g["other"]
    if _is_float(a):
        return T.floor(a / b)
    wrong = _opposite_signs(T.truncmod(a, b), b)
    return tirx.Select(wrong, T.truncdiv(a, b) - 1, T.truncdiv(a, b))


def _truncated_remainder(g: Given) -> Expr:
    a, b = g["self"], g["other"]
    if not _is_float(a):
        return T.truncmod(a, b)
    return T.call_pure_extern(str(a.ty.dtype), "fmodf", a, b)


def _remainder(g: Given) -> Expr:
    b, rest = g["other"], _truncated_remainder(g)

    def corrected(rest: Expr) -> Expr:
        return tirx.Select(_opposite_signs(rest, b), rest + b, rest)

    return vector.let(rest, corrected)


def _div(g: Given) -> Expr:
    mode = g.get("rounding_mode")
    if mode == "floor":
        return _floor_divide(g)
    if mode == "trunc":
        a, b = g["self"], g["other"]
        return T.trunc(a / b) if _is_float(a) else T.truncdiv(a, b)
    return g["self"] / g["other"]


def _pow(g: Given) -> Expr:
    base, exponent = g["self"], g["exponent"]
    if isinstance(exponent, (int, float)):
        if exponent in (0.5, -0.5):
            root = T.sqrt(base)
            return root if exponent > 0 else _like(1, base) / root
        if exponent == int(exponent) and 1 <= abs(exponent) <= 4:
            power = base
            for _ in range(int(abs(exponent)) - 1):
                power = power * base
            return power if exponent > 0 else _like(1, base) / power
        exponent = _like(exponent, base)
    if not _is_float(exponent):
        raise BackendError("a region cannot raise integers to integer powers above 4.")
    return T.pow(_like(base, exponent), exponent)


def _gelu(g: Given) -> Expr:
    form = vector.vgelu_tanh if g["approximate"] == "tanh" else vector.vgelu
    return form(g["self"], vector.lanes_of(g["self"]))


def _softplus_of(x: Expr, beta: float, threshold: float) -> Expr:
    scaled = x * _like(beta, x)
    lanes = vector.lanes_of(x)
    if lanes > 1:
        soft = vector.vsoftplus(scaled, lanes) * _like(1 / beta, x)
    else:
        soft = vector.let(vector.vexp(scaled, 1), T.log1p) * _like(1 / beta, x)
    return tirx.Select(scaled > _like(threshold, x), x, soft)


def _elu(g: Given) -> Expr:
    x, scale = g["self"], g["scale"]
    bent = vector.vexpm1(x * _like(g["input_scale"], x), vector.lanes_of(x))
    return tirx.Select(x > _like(0, x), x * _like(scale, x), bent * _like(g["alpha"] * scale, x))


def _clamp(g: Given) -> Expr:
    x = g["self"]
    if g.get("min") is not None:
        x = largest(x, _like(g["min"], x))
    return x if g.get("max") is None else smallest(x, _like(g["max"], x))


def _leaky_relu(g: Given) -> Expr:
    x = g["self"]
    return tirx.Select(x > _like(0, x), x, x * _like(g["negative_slope"], x))


def _sign(g: Given) -> Expr:
    x, zero = g["self"], _like(0, g["self"])
    positive = tirx.Select(x > zero, _like(1, x), zero)
    return tirx.Select(x < zero, _like(-1, x), positive)


def _addcmul(g: Given) -> Expr:
    product = g["tensor1"] * g["tensor2"]
    return g["self"] + (product if g["value"] == 1 else product * _like(g["value"], product))


def _is_bool(value: Expr) -> bool:
    return str(value.ty.dtype).startswith("bool")


def _differ(a: Expr, b: Expr) -> Expr:
    """a != b; TVM compares booleans as if they were floats."""
    if not _is_bool(a):
        return tirx.NE(a, b)
    return tirx.Or(tirx.And(a, tirx.Not(b)), tirx.And(tirx.Not(a), b))


def _is_infinite(x: Expr) -> Expr:
    if not _is_float(x):
        return tirx.const(False, "bool")
    return tirx.EQ(T.fabs(x), _like(math.inf, x))


def _rounded(g: Given) -> Expr:
    x = g["self"]
    return T.call_llvm_pure_intrin(str(x.ty.dtype), "llvm.rint", x) if _is_float(x) else x


def _of(function: Callable[[Expr], Expr]) -> Callable[[Given], Expr]:
    return lambda g: function(g["self"])


def _lanes(function: Callable[[Expr, int], Expr]) -> Callable[[Given], Expr]:
    return lambda g: function(g["self"], vector.lanes_of(g["self"]))


def _binary(function: Callable[[Expr, Expr], Expr]) -> Callable[[Given], Expr]:
    return lambda g: function(g["self"], g["other"])


def _whole(function: Callable[[Expr], Expr]) -> Callable[[Given], Expr]:
    """Of a rounding function: integers stay."""
    return lambda g: function(g["self"]) if _is_float(g["self"]) else g["self"]


POINTWISE: dict[str, Callable[[Given], Expr]] = {
    "add": _add,
    "sub": lambda g: g["self"] - _scaled(g),
    "rsub": lambda g: _like(g["other"], g["self"]) - g["self"] * _like(g["alpha"], g["self"]),
    "mul": _mul,
    "div": _div,
    "floor_divide": _floor_divide,
    "remainder": _remainder,
    "fmod": _truncated_remainder,
    "pow": _pow,
    "neg": lambda g: (
        tirx.Sub(_like(0, g["self"]), g["self"])
        if not _is_float(g["self"])
        else g["self"] * _like(-1, g["self"])
    ),
    "abs": lambda g: T.fabs(g["self"]) if _is_float(g["self"]) else T.abs(g["self"]),
    "exp": _lanes(vector.vexp),
    "expm1": _lanes(vector.vexpm1),
    "exp2": _of(T.exp2),
    "log": _of(T.log),
    "log2": _of(T.log2),
    "log10": _of(T.log10),
    "log1p": _of(T.log1p),
    "sqrt": _of(T.sqrt),
    "rsqrt": lambda g: _like(1, g["self"]) / T.sqrt(g["self"]),
    "reciprocal": lambda g: _like(1, g["self"]) / g["self"],
    "sin": _of(T.sin),
    "cos": _of(T.cos),
    "tanh": _lanes(vector.vtanh),
    "sigmoid": _lanes(vector.vsigmoid),
    "erf": _lanes(vector.verf),
    "silu": _lanes(vector.vsilu),
    "gelu": _gelu,
    "relu": lambda g: largest(g["self"], _like(0, g["self"])),
    "relu6": lambda g: smallest(largest(g["self"], _like(0, g["self"])), _like(6, g["self"])),
    "softplus": lambda g: _softplus_of(g["self"], g["beta"], g["threshold"]),
    "leaky_relu": _leaky_relu,
    "elu": _elu,
    "hardtanh": lambda g: _clamp({"self": g["self"], "min": g["min_val"], "max": g["max_val"]}),
    "mish": lambda g: g["self"] * vector.vtanh(_softplus_of(g["self"], 1.0, 20.0), 1),
    "square": lambda g: g["self"] * g["self"],
    "floor": _whole(T.floor),
    "ceil": _whole(T.ceil),
    "round": _rounded,
    "trunc": _whole(T.trunc),
    "sign": _sign,
    "clamp": _clamp,
    "clamp_min": lambda g: largest(g["self"], _like(g["min"], g["self"])),
    "clamp_max": lambda g: smallest(g["self"], _like(g["max"], g["self"])),
    "maximum": _binary(largest),
    "minimum": _binary(smallest),
    "where": lambda g: tirx.Select(g["condition"], g["self"], g["other"]),
    "masked_fill": lambda g: tirx.Select(g["mask"], g["value"], g["self"]),
    "eq": _binary(lambda a, b: tirx.Not(_differ(a, b)) if _is_bool(a) else tirx.EQ(a, b)),
    "ne": _binary(_differ),
    "lt": _binary(tirx.LT),
    "le": _binary(tirx.LE),
    "gt": _binary(tirx.GT),
    "ge": _binary(tirx.GE),
    "logical_and": _binary(tirx.And),
    "logical_or": _binary(tirx.Or),
    "logical_xor": _binary(_differ),
    "logical_not": _of(tirx.Not),
    "isnan": _of(lambda x: T.isnan(x) if _is_float(x) else tirx.const(False, "bool")),
    "isinf": _of(_is_infinite),
    "bitwise_and": _binary(_both),
    "bitwise_or": _binary(_either),
    "__and__": _binary(_both),
    "__or__": _binary(_either),
    "bitwise_not": lambda g: (
        tirx.Not(g["self"]) if _is_bool(g["self"]) else T.bitwise_not(g["self"])
    ),
    "_to_copy": _of(lambda x: x),
    "addcmul": _addcmul,
}

# What takes vectors. The others call functions of libm, which are for one number.
VECTORS = frozenset(
    (
        "add sub rsub mul div neg abs exp expm1 sqrt rsqrt reciprocal tanh sigmoid erf silu gelu "
        "softplus relu relu6 leaky_relu elu hardtanh square sign clamp clamp_min clamp_max maximum "
        "minimum where masked_fill eq ne lt le gt ge logical_and logical_or logical_xor "
        "logical_not bitwise_and bitwise_or bitwise_not __and__ __or__ _to_copy addcmul"
    ).split()
)
