"""What each pointwise aten op computes, as Triton source."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from graphwright.backends.triton.regions.text import Text, call, literal
from graphwright.ir.errors import BackendError

__all__ = ["POINTWISE", "cast"]

Given = dict[str, Any]  # arguments by name: operands as Text, parameters as Python values


def cast(value: Text, dtype: str) -> Text:
    """As torch's `.to`: to bool is != 0, to an integer truncates."""
    if value.dtype == dtype:
        return value
    if value.is_literal:
        number = {"True": 1.0, "False": 0.0}.get(value.code)
        return literal(number if number is not None else _number(value.code), dtype)
    if dtype == "bool":
        return call("({0} != 0)", value, dtype="bool")
    return call(f"{{0}}.to(tl.{dtype})", value, dtype=dtype)


def _number(code: str) -> float:
    return float(code.removeprefix('float("').rstrip('")').strip("()"))


def _is_float(value: Text) -> bool:
    return value.dtype.startswith("float")


def _f(template: str) -> Callable[[Given], Text]:
    """A function of `self`."""
    return lambda g: call(template, g["self"])


def _two(template: str, boolean: str | None = None) -> Callable[[Given], Text]:
    """A function of `self` and `other`; `boolean` is used for bool operands."""

    def made(g: Given) -> Text:
        chosen = boolean if boolean is not None and g["self"].dtype == "bool" else template
        return call(chosen, g["self"], g["other"])

    return made


def _compare(operator: str) -> Callable[[Given], Text]:
    return lambda g: call(f"({{0}} {operator} {{1}})", g["self"], g["other"], dtype="bool")


def _scaled(g: Given) -> Text:
    alpha = g.get("alpha", 1)
    other: Text = g["other"]
    return other if alpha == 1 else call("({0} * {1})", other, literal(alpha, other.dtype))


def _add(g: Given) -> Text:
    if g["self"].dtype == "bool":
        return call("({0} | {1})", g["self"], g["other"])
    return call("({0} + {1})", g["self"], _scaled(g))


def _rsub(g: Given) -> Text:
    x = g["self"]
    scaled = x if g["alpha"] == 1 else call("({0} * {1})", x, literal(g["alpha"], x.dtype))
    other = g["other"] if isinstance(g["other"], Text) else literal(g["other"], x.dtype)
    return call("({0} - {1})", other, scaled)


def _choice(name: str) -> Callable[[Given], Text]:
    """The function `name` of self and other, told whether they are floats."""
    return lambda g: call(f"{name}({{0}}, {{1}}, {_is_float(g['self'])})", g["self"], g["other"])


def _fmod(g: Given) -> Text:
    a, b = g["self"], g["other"]
    if _is_float(a):
        return call("({0} - truncate({0} / {1}) * {1})", a, b)
    return call("({0} % {1})", a, b)


def _div(g: Given) -> Text:
    mode, a, b = g.get("rounding_mode"), g["self"], g["other"]
    if mode == "floor":
        return _choice("floor_divide")(g)
    if mode == "trunc":
        return call("truncate({0} / {1})" if _is_float(a) else "({0} // {1})", a, b)
    return call("({0} / {1})", a, b)


def _pow(g: Given) -> Text:
    base, exponent = g["self"], g["exponent"]
    if isinstance(exponent, (int, float)):
        if exponent in (0.5, -0.5):
            return call("tl.sqrt({0})" if exponent > 0 else "(1.0 / tl.sqrt({0}))", base)
        if exponent == int(exponent) and 1 <= abs(exponent) <= 4:
            product = " * ".join(["{0}"] * int(abs(exponent)))
            return call(f"({product})" if exponent > 0 else f"(1.0 / ({product}))", base)
        exponent = literal(exponent, base.dtype)
    if not isinstance(base, Text):
        base = literal(base, exponent.dtype)
    if not _is_float(exponent):
        raise BackendError("a region cannot raise integers to integer powers above 4.")
    return call("power({0}, {1})", base, exponent, dtype=exponent.dtype)


def _limit(name: str) -> Callable[[Text, Text], Text]:
    """tl.maximum or tl.minimum; NaN wins, as in torch."""

    def made(a: Text, b: Text) -> Text:
        nan = ", propagate_nan=tl.PropagateNan.ALL" if _is_float(a) else ""
        return call(f"tl.{name}({{0}}, {{1}}{nan})", a, b)

    return made


_largest, _smallest = _limit("maximum"), _limit("minimum")


def _operand(value: Any, like: Text) -> Text:
    return value if isinstance(value, Text) else literal(value, like.dtype)


def _clamp(g: Given) -> Text:
    x: Text = g["self"]
    if g.get("min") is not None:
        x = _largest(x, _operand(g["min"], x))
    return x if g.get("max") is None else _smallest(x, _operand(g["max"], x))


def _softplus(x: Text, beta: float, threshold: float) -> Text:
    return call(f"softplus({{0}}, {float(beta)!r}, {float(threshold)!r})", x)


def _elu(g: Given) -> Text:
    scale, alpha, inner = float(g["scale"]), float(g["alpha"]), float(g["input_scale"])
    bent = f"expm1({{0}} * {inner!r}) * {alpha * scale!r}"
    return call(f"tl.where({{0}} > 0, {{0}} * {scale!r}, {bent})", g["self"])


def _gelu(g: Given) -> Text:
    if g["approximate"] == "tanh":
        inner = "0.7978845608028654 * ({0} + 0.044715 * {0} * {0} * {0})"
        return call(f"(0.5 * {{0}} * (1.0 + tanh({inner})))", g["self"])
    return call(f"(0.5 * {{0}} * (1.0 + tl.erf({{0}} * {math.sqrt(0.5)!r})))", g["self"])


def _addcmul(g: Given) -> Text:
    product = call("({0} * {1})", g["tensor1"], g["tensor2"])
    if g["value"] != 1:
        product = call("({0} * {1})", product, literal(g["value"], product.dtype))
    return call("({0} + {1})", g["self"], product)


def _whole(template: str) -> Callable[[Given], Text]:
    """Of a rounding function: integers stay."""
    return lambda g: call(template, g["self"]) if _is_float(g["self"]) else g["self"]


def _where(condition: str, yes: str, no: str) -> Callable[[Given], Text]:
    return lambda g: call("tl.where({0}, {1}, {2})", g[condition], g[yes], g[no], dtype=g[no].dtype)


def _floats(template: str) -> Callable[[Given], Text]:
    """A question that is false for integers."""
    return lambda g: (
        call(template, g["self"], dtype="bool") if _is_float(g["self"]) else literal(0, "bool")
    )


_AND, _OR = _two("({0} & {1})"), _two("({0} | {1})")
POINTWISE: dict[str, Callable[[Given], Text]] = {
    "add": _add,
    "sub": lambda g: call("({0} - {1})", g["self"], _scaled(g)),
    "rsub": _rsub,
    "mul": _two("({0} * {1})", "({0} & {1})"),
    "div": _div,
    "floor_divide": _choice("floor_divide"),
    "remainder": _choice("modulo"),
    "fmod": _fmod,
    "pow": _pow,
    "neg": _f("(-{0})"),
    "abs": _f("tl.abs({0})"),
    "exp": _f("tl.exp({0})"),
    "exp2": _f("tl.exp2({0})"),
    "expm1": _f("expm1({0})"),
    "log": _f("tl.log({0})"),
    "log2": _f("tl.log2({0})"),
    "log10": _f(f"(tl.log2({{0}}) * {math.log10(2)!r})"),
    "log1p": _f("log1p({0})"),
    "sqrt": _f("tl.sqrt({0})"),
    "rsqrt": _f("(1.0 / tl.sqrt({0}))"),
    "reciprocal": _f("(1.0 / {0})"),
    "sin": _f("sine({0})"),
    "cos": _f("cosine({0})"),
    "tanh": _f("tanh({0})"),
    "sigmoid": _f("(1.0 / (1.0 + tl.exp(-{0})))"),
    "erf": _f("tl.erf({0})"),
    "silu": _f("({0} / (1.0 + tl.exp(-{0})))"),
    "gelu": _gelu,
    "relu": lambda g: _largest(g["self"], literal(0, g["self"].dtype)),
    "relu6": lambda g: _clamp({"self": g["self"], "min": 0, "max": 6}),
    "softplus": lambda g: _softplus(g["self"], g["beta"], g["threshold"]),
    "leaky_relu": lambda g: call(
        f"tl.where({{0}} > 0, {{0}}, {{0}} * {float(g['negative_slope'])!r})", g["self"]
    ),
    "elu": _elu,
    "hardtanh": lambda g: _clamp({"self": g["self"], "min": g["min_val"], "max": g["max_val"]}),
    "mish": lambda g: call("({0} * tanh(softplus({0}, 1.0, 20.0)))", g["self"]),
    "square": _f("({0} * {0})"),
    "floor": _whole("tl.floor({0})"),
    "ceil": _whole("tl.ceil({0})"),
    "round": _whole("round_even({0})"),
    "trunc": _whole("truncate({0})"),
    "sign": _f("(({0} > 0).to({0}.dtype) - ({0} < 0).to({0}.dtype))"),
    "clamp": _clamp,
    "clamp_min": lambda g: _largest(g["self"], _operand(g["min"], g["self"])),
    "clamp_max": lambda g: _smallest(g["self"], _operand(g["max"], g["self"])),
    "maximum": lambda g: _largest(g["self"], g["other"]),
    "minimum": lambda g: _smallest(g["self"], g["other"]),
    "where": _where("condition", "self", "other"),
    "masked_fill": _where("mask", "value", "self"),
    "eq": _compare("=="),
    "ne": _compare("!="),
    "lt": _compare("<"),
    "le": _compare("<="),
    "gt": _compare(">"),
    "ge": _compare(">="),
    "logical_and": _AND,
    "logical_or": _OR,
    "logical_xor": _two("({0} ^ {1})"),
    "logical_not": _f("({0} == 0)"),
    "isnan": _floats("({0} != {0})"),
    "isinf": _floats('(tl.abs({0}) == float("inf"))'),
    "bitwise_and": _AND,
    "bitwise_or": _OR,
    "__and__": _AND,
    "__or__": _OR,
    "bitwise_not": lambda g: call(
        "({0} == 0)" if g["self"].dtype == "bool" else "(~{0})", g["self"]
    ),
    "_to_copy": lambda g: g["self"],
    "addcmul": _addcmul,
}
