"""Instructions of PTX that work on each thread's own registers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from ptx_parse import TYPES, Instruction
from ptx_values import Array

__all__ = ["Arithmetic", "arithmetic"]


@dataclass(frozen=True)
class Arithmetic:
    """result = function(*operands), which are read as `operands` says and written as `result`."""

    result: str
    operands: tuple[str, ...]
    function: Callable[..., Any]


def arithmetic(instruction: Instruction) -> Arithmetic | None:
    """What an instruction does; None if it is no arithmetic. Raises NotImplementedError for a
    modifier that is not known.
    """
    name, *rest = instruction.operation
    if name not in _RULES:
        return None
    modifiers = [part for part in rest if part not in TYPES]
    kinds = [part for part in rest if part in TYPES]
    made: Arithmetic = _RULES[name](name, modifiers, kinds)
    if len(instruction.operands) != 1 + len(made.operands):
        raise NotImplementedError(instruction.text)
    return made


def _only(modifiers: Sequence[str], allowed: Sequence[str]) -> None:
    for each in modifiers:
        if each not in allowed:
            raise NotImplementedError(f"modifier .{each}")


# float32: every rounding is to nearest; what is approximate on a GPU is exact here, and subnormal
# numbers stay.
_ROUND = ("rn", "ftz", "approx", "full")


def _fma(a: Array, b: Array, c: Array) -> Any:
    return a.astype(np.float64) * b + c


_FLOATS: dict[str, Callable[..., Any]] = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "fma": _fma, "div": np.divide,
    "min": np.fmin, "max": np.fmax, "neg": np.negative, "abs": np.abs,
    "ex2": np.exp2, "lg2": np.log2, "rcp": lambda a: 1 / a, "sqrt": np.sqrt,
    "rsqrt": lambda a: 1 / np.sqrt(a), "tanh": np.tanh, "sin": np.sin, "cos": np.cos,
}  # fmt: skip


def _divide(a: Array, b: Array) -> Any:
    """Integers, towards zero; of 0 all bits, as on a GPU."""
    quotient = np.abs(a.astype(np.int64)) // np.maximum(np.abs(b.astype(np.int64)), 1)
    return np.where(b == 0, -1, np.where((a < 0) != (b < 0), -quotient, quotient))


_INTEGERS: dict[str, Callable[..., Any]] = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "mad": lambda a, b, c: a * b + c,
    "div": _divide, "rem": lambda a, b: np.fmod(a, np.where(b == 0, 1, b)), "min": np.minimum,
    "max": np.maximum, "neg": np.negative, "abs": np.abs,
}  # fmt: skip
_ARITY = {"mad": 3, "fma": 3} | dict.fromkeys(("add", "sub", "mul", "div", "rem", "min", "max"), 2)


def _upper_half(a: Array, b: Array) -> Any:
    """Of products of 64 bits, by halves."""
    half, low = np.uint64(32), np.uint64(0xFFFFFFFF)
    first, second = (a >> half) * (b & low), (a & low) * (b >> half)
    middle = ((a & low) * (b & low) >> half) + (first & low) + (second & low)
    return (a >> half) * (b >> half) + (first >> half) + (second >> half) + (middle >> half)


def _numbers(name: str, modifiers: list[str], kinds: list[str]) -> Arithmetic:
    (kind,) = kinds
    count = _ARITY.get(name, 1)
    if "f" in kind:
        if "NaN" in modifiers and name in ("min", "max"):
            modifiers.remove("NaN")
            function: Any = np.minimum if name == "min" else np.maximum
        else:
            function = _FLOATS[name]
        _only(modifiers, _ROUND)
        return Arithmetic(kind, (kind,) * count, function)
    if name not in _INTEGERS or (kind == "u64" and name in ("div", "rem")):
        raise NotImplementedError(f"{name}.{kind}")
    function = _INTEGERS[name]
    if "wide" in modifiers:
        _only(modifiers, ("wide",))
        wide = f"{kind[0]}{2 * TYPES[kind]}"
        wider = np.int64 if kind[0] == "s" else np.uint64

        def product(a: Array, b: Array, *c: Array) -> Any:
            return function(a.astype(wider), b.astype(wider), *c)

        return Arithmetic(wide, (kind, kind, wide)[:count], product)
    if "hi" in modifiers:
        width = TYPES[kind]
        if name != "mul" or kind == "s64":
            raise NotImplementedError(f"{name}.hi.{kind}")
        _only(modifiers, ("hi",))
        if kind == "u64":
            return Arithmetic(kind, (kind,) * 2, _upper_half)
        wider = np.int64 if kind[0] == "s" else np.uint64
        return Arithmetic(kind, (kind,) * 2, lambda a, b: (a.astype(wider) * b) >> wider(width))
    _only(modifiers, ("lo",))
    return Arithmetic(kind, (kind,) * count, function)


def _logic(name: str, modifiers: list[str], kinds: list[str]) -> Arithmetic:
    _only(modifiers, ())
    (kind,) = kinds
    functions: dict[str, Callable[..., Any]] = {
        "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor, "not": np.invert,
    }  # fmt: skip
    return Arithmetic(kind, (kind,) * (1 if name == "not" else 2), functions[name])


def _shift(name: str, modifiers: list[str], kinds: list[str]) -> Arithmetic:
    _only(modifiers, ())
    (kind,) = kinds
    width = TYPES[kind]

    def shift(a: Array, count: Array) -> Any:
        kept = np.minimum(count, width - 1).astype(a.dtype)
        moved = a << kept if name == "shl" else a >> kept
        if kind[0] == "s":
            return moved
        return np.where(count < width, moved, np.zeros(1, a.dtype))

    return Arithmetic(kind, (kind, "u32"), shift)


def _funnel(name: str, modifiers: list[str], kinds: list[str]) -> Arithmetic:
    left, mode = modifiers
    if kinds != ["b32"] or left not in "lr" or mode not in ("wrap", "clamp"):
        raise NotImplementedError(f"shf.{modifiers}.{kinds}")

    def shift(low: Array, high: Array, count: Array) -> Any:
        by = (count & 31 if mode == "wrap" else np.minimum(count, 32)).astype(np.uint64)
        both = (high.astype(np.uint64) << np.uint64(32)) | low
        return (both << by) >> np.uint64(32) if left == "l" else both >> by

    return Arithmetic("u32", ("u32",) * 3, shift)


def _extract(name: str, modifiers: list[str], kinds: list[str]) -> Arithmetic:
    _only(modifiers, ())
    (kind,) = kinds
    width = TYPES[kind]

    def extract(a: Array, at: Array, length: Array) -> Any:
        at, length = (at & 255).astype(np.int64), (length & 255).astype(np.int64)
        if (at + length > width).any() or (length == 0).any():
            raise NotImplementedError("bfe beyond the register")
        left = (width - at - length).astype(a.dtype)
        moved = (a << left) >> (width - length).astype(a.dtype)
        return moved

    return Arithmetic(kind, (kind, "u32", "u32"), extract)


def _insert(name: str, modifiers: list[str], kinds: list[str]) -> Arithmetic:
    if modifiers or kinds != ["b32"]:
        raise NotImplementedError(f"bfi.{kinds}")

    def insert(a: Array, b: Array, at: Array, length: Array) -> Any:
        at, length = (at & 255).astype(np.uint64), (length & 255).astype(np.uint64)
        one = np.uint64(1)
        mask = ((one << length) - one) << at
        return (b & ~mask) | ((a.astype(np.uint64) << at) & mask)

    return Arithmetic("u32", ("u32",) * 4, insert)


def _permute(name: str, modifiers: list[str], kinds: list[str]) -> Arithmetic:
    if modifiers or kinds != ["b32"]:
        raise NotImplementedError(f"prmt.{modifiers}")

    def permute(a: Array, b: Array, selector: Array) -> Any:
        both = a.astype(np.uint64) | (b.astype(np.uint64) << np.uint64(32))
        result = np.zeros(1, np.uint64)
        for i in range(4):
            chosen = (selector >> np.uint32(4 * i)).astype(np.uint64)
            byte = (both >> (np.uint64(8) * (chosen & np.uint64(7)))) & np.uint64(255)
            sign = np.where(byte & np.uint64(128), np.uint64(255), np.uint64(0))
            byte = np.where(chosen & np.uint64(8), sign, byte)
            result = result | (byte << np.uint64(8 * i))
        return result

    return Arithmetic("u32", ("u32",) * 3, permute)


def _lookup(name: str, modifiers: list[str], kinds: list[str]) -> Arithmetic:
    if modifiers or kinds != ["b32"]:
        raise NotImplementedError(f"lop3.{modifiers}")

    def lookup(a: Array, b: Array, c: Array, table: Array) -> Any:
        result: Any = np.zeros(1, np.uint32)
        for i in range(8):
            if int(table[0]) >> i & 1:
                terms = [v if i & bit else ~v for v, bit in ((a, 4), (b, 2), (c, 1))]
                result = result | (terms[0] & terms[1] & terms[2])
        return result

    return Arithmetic("u32", ("u32",) * 4, lookup)


def _count(name: str, modifiers: list[str], kinds: list[str]) -> Arithmetic:
    _only(modifiers, ())
    (kind,) = kinds
    return Arithmetic("u32", (kind,), np.bitwise_count)


_COMPARE: dict[str, Callable[..., Any]] = {
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater,
    "ge": np.greater_equal,
}  # fmt: skip


def _compare(name: str, modifiers: list[str], kinds: list[str]) -> Arithmetic:
    (kind,) = kinds
    how, *others = modifiers
    _only(others, ("ftz",))
    if how in ("nan", "num"):
        return Arithmetic(
            "pred", (kind, kind), lambda a, b: (np.isnan(a) | np.isnan(b)) == (how == "nan")
        )
    if how in _COMPARE and "f" in kind:
        compare = _COMPARE[how]
        return Arithmetic(
            "pred", (kind, kind), lambda a, b: compare(a, b) & ~np.isnan(a) & ~np.isnan(b)
        )
    if "f" in kind and how[:-1] in _COMPARE and how[-1] == "u":
        unordered = _COMPARE[how[:-1]]
        return Arithmetic(
            "pred", (kind, kind), lambda a, b: unordered(a, b) | np.isnan(a) | np.isnan(b)
        )
    if how not in _COMPARE:
        raise NotImplementedError(f"setp.{how}")
    return Arithmetic("pred", (kind, kind), _COMPARE[how])


def _select(name: str, modifiers: list[str], kinds: list[str]) -> Arithmetic:
    _only(modifiers, ())
    bits = f"b{TYPES[kinds[0]]}"
    return Arithmetic(bits, (bits, bits, "pred"), lambda a, b, p: np.where(p, a, b))


_TO_INTEGER = {"rzi": np.trunc, "rni": np.rint, "rmi": np.floor, "rpi": np.ceil}


def _convert(name: str, modifiers: list[str], kinds: list[str]) -> Arithmetic:
    to, source = kinds
    if to.endswith("x2"):
        _only(modifiers, ("rn",))
        return Arithmetic(
            to, (source, source), lambda a, b: np.stack(np.broadcast_arrays(b, a), axis=-1)
        )
    if "f" in source and "f" not in to:
        (how,) = (m for m in modifiers if m != "ftz")
        info = np.iinfo(f"{'i' if to[0] == 's' else 'u'}{TYPES[to] // 8}")

        def rounded(a: Array) -> Any:
            whole = _TO_INTEGER[how](np.nan_to_num(a.astype(np.float64), nan=0.0))
            if to == "u64":
                raise NotImplementedError(f"cvt.{to}.{source}")
            most = np.nextafter(2.0**63, 0) if to == "s64" else info.max
            return np.clip(whole, info.min, most).astype(np.int64)

        return Arithmetic(to, (source,), rounded)
    if "f" in source and set(modifiers) & set(_TO_INTEGER):
        (how,) = modifiers
        return Arithmetic(to, (source,), _TO_INTEGER[how])
    _only(modifiers, ("rn", "ftz"))
    if "f" in to and "f" not in source:
        return Arithmetic(to, (source,), lambda a: a.astype(np.float64))
    return Arithmetic(to, (source,), lambda a: a)


_RULES: dict[str, Callable[[str, list[str], list[str]], Arithmetic]] = {
    **dict.fromkeys([*_FLOATS, *_INTEGERS], _numbers),
    **dict.fromkeys(("and", "or", "xor", "not"), _logic),
    **dict.fromkeys(("shl", "shr"), _shift),
    "shf": _funnel, "bfe": _extract, "bfi": _insert, "prmt": _permute, "lop3": _lookup,
    "popc": _count, "setp": _compare, "selp": _select, "cvt": _convert,
}  # fmt: skip
