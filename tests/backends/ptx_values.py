"""Registers as numpy arrays of bits, one element a thread, and the numbers that they mean."""

from __future__ import annotations

from functools import cache
from typing import Any, TypeAlias

import numpy as np
from ptx_parse import TYPES

__all__ = ["Array", "as_type", "constant", "of_bits", "to_bits"]

Array: TypeAlias = np.ndarray[Any, Any]
UNSIGNED: dict[int, Any] = {1: np.bool_, 8: np.uint8, 16: np.uint16, 32: np.uint32, 64: np.uint64}
SIGNED: dict[int, Any] = {8: np.int8, 16: np.int16, 32: np.int32, 64: np.int64}


def of_bits(bits: Array, kind: str) -> Array:
    """Bits [n] as wide as `kind` or wider, as numbers [n]; of pairs [n, 2]. float16 and bfloat16
    become float32.
    """
    width = TYPES[kind]
    if bits.dtype != UNSIGNED[width]:
        if bits.dtype.itemsize * 8 < width or kind == "pred":
            raise NotImplementedError(f"{kind} of {bits.dtype}")
        bits = bits.astype(UNSIGNED[width])
    if kind.endswith("x2"):
        return of_bits(bits.view(np.uint16), kind[:-2]).reshape(-1, 2)
    if kind == "bf16":
        return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
    if kind == "f16":
        return bits.view(np.float16).astype(np.float32)
    if kind == "tf32":
        return (bits & np.uint32(0xFFFFE000)).view(np.float32)
    if kind == "f32":
        return bits.view(np.float32)
    if kind == "f64":
        return bits.view(np.float64)
    return bits.view(SIGNED[width]) if kind[0] == "s" else bits


def to_bits(values: Array, kind: str) -> Array:
    """The inverse: floats are rounded to nearest even, integers wrap."""
    if kind.endswith("x2"):
        halves = to_bits(np.ascontiguousarray(values).reshape(-1), kind[:-2])
        return halves.view(np.uint32)
    if kind == "bf16":
        bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
        rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> 16
        return np.where(np.isnan(values), 0x7FFF, rounded).astype(np.uint16)
    if kind in ("f16", "f32", "f64"):
        kept = np.ascontiguousarray(values, f"f{TYPES[kind] // 8}")
        return kept.view(UNSIGNED[TYPES[kind]])
    if kind[0] == "s":
        return np.ascontiguousarray(values).astype(SIGNED[TYPES[kind]]).view(UNSIGNED[TYPES[kind]])
    return np.ascontiguousarray(values).astype(UNSIGNED[TYPES[kind]])


def as_type(bits: Array, kind: str, width: int) -> Array:
    """Bits of a `kind` in a register of `width`: extended by the sign if the kind is signed."""
    if TYPES[kind] == width:
        return bits
    if TYPES[kind] > width:
        raise NotImplementedError(f"{kind} into {width} bits")
    if kind[0] == "s":
        bits = bits.view(SIGNED[TYPES[kind]]).astype(SIGNED[width])
    return bits.astype(UNSIGNED[width])


@cache
def constant(text: str, kind: str) -> Array:
    """A number in the text, as bits [1]."""
    width = TYPES[kind]
    if text[:2] == "0f":
        return np.array([int(text[2:], 16)], UNSIGNED[32])
    if text[:2] == "0d":
        return np.array([int(text[2:], 16)], UNSIGNED[64])
    value = int(text.removesuffix("U"), 0)
    if kind == "pred":
        return np.array([value != 0])
    return np.array([value & ((1 << width) - 1)], UNSIGNED[width])
