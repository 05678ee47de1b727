"""Instructions of PTX that a warp of 32 threads does together (PTX ISA, "Warp-level …")."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from ptx_values import Array, of_bits, to_bits

__all__ = ["load_matrices", "multiply", "reduce", "shuffle", "store_matrices"]

LANE = np.arange(32)


def multiply(a: Sequence[Array], b: Sequence[Array], c: Sequence[Array], kind: str) -> list[Array]:
    """mma.m16n8kK, K by the number of registers: bits [threads] each, c and the result float32 or,
    for s8 and u8, int32. A lane holds of the row, or column, lane / 4 what lies at lane % 4.
    """
    warps, values = len(a[0]) // 32, {"s8": 4, "u8": 4, "tf32": 1}.get(kind, 2)
    halves = len(b)

    def numbers(registers: Sequence[Array]) -> Array:
        bits = np.stack(registers)
        if values > 1:
            bits = bits.view(np.uint8 if values == 4 else np.uint16)
        found = of_bits(bits.reshape(-1), kind)
        if values == 4:
            found = found.astype(np.float64)  # sums of products of bytes are exact
        return found.reshape(-1, warps, 8, 4, values)

    k = halves * 4 * values
    left = numbers(a).reshape(halves, 2, warps, 8, 4, values)
    left = left.transpose(2, 1, 3, 0, 4, 5).reshape(warps, 16, k)
    right = numbers(b).transpose(1, 0, 3, 4, 2).reshape(warps, k, 8)
    product = left @ right
    sums = product.reshape(warps, 2, 8, 4, 2).transpose(1, 4, 0, 2, 3).reshape(4, -1)
    result = "s32" if values == 4 else "f32"
    totals = [of_bits(own, result) + more for own, more in zip(c, sums, strict=True)]
    if values == 4:
        totals = [np.clip(each, -(2**31), 2**31 - 1).astype(np.int64) for each in totals]
    return [to_bits(each, result) for each in totals]


def load_matrices(rows: Array, count: int, transposed: bool) -> list[Array]:
    """ldmatrix.m8n8 of 16 bits: the 16 bytes [warps, 8 * count, 16] of each row, to `count`
    registers of a thread.
    """
    matrices = rows.reshape(-1, count, 8, 16).view(np.uint16)
    if transposed:
        matrices = np.ascontiguousarray(matrices.swapaxes(2, 3))
    pairs = matrices.view(np.uint32)  # [warps, count, 8, 4]
    return [np.ascontiguousarray(pairs[:, i]).reshape(-1) for i in range(count)]


def store_matrices(registers: Sequence[Array], transposed: bool) -> Array:
    """stmatrix: the inverse of load_matrices."""
    matrices = np.stack(registers).view(np.uint16).reshape(len(registers), -1, 8, 8)
    matrices = (matrices.swapaxes(2, 3) if transposed else matrices).swapaxes(0, 1)
    rows = np.ascontiguousarray(matrices).view(np.uint8)
    return rows.reshape(len(rows), 8 * len(registers), 16)


def shuffle(mode: str, a: Array, b: Array, c: Array) -> Array:
    """shfl.sync: what each thread gets, its own number where it asks out of range. [threads]."""
    lane = np.tile(LANE, len(a) // 32)
    by, clamp, segment = b.astype(np.int64) & 31, c.astype(np.int64) & 31, c.astype(np.int64) >> 8
    segment = segment & 31
    low = lane & segment
    most = low | (clamp & ~segment)
    source = {
        "up": lane - by, "down": lane + by, "bfly": lane ^ by, "idx": low | (by & ~segment),
    }[mode]  # fmt: skip
    inside = source >= most if mode == "up" else source <= most
    source = np.where(inside, source, lane)
    found: Array = a[np.arange(len(a)) // 32 * 32 + source]
    return found


def reduce(name: str, a: Array) -> Array:
    """redux.sync over each warp's numbers [threads]."""
    functions = {
        "add": np.add, "min": np.minimum, "max": np.maximum, "and": np.bitwise_and,
        "or": np.bitwise_or, "xor": np.bitwise_xor,
    }  # fmt: skip
    found = functions[name].reduce(a.reshape(-1, 32), axis=1, dtype=a.dtype)
    return np.repeat(found, 32)
