"""wgmma of sm_90: where a descriptor says that a matrix lies in shared memory, and the product.

PTX ISA, "Asynchronous warpgroup level matrix operation": start, leading and stride offsets in units
of 16 bytes, and the swizzle, by which 16-byte pieces of a row of 128 bytes (or 64, or 32) change
places by an exclusive or with the row's number.
"""

from __future__ import annotations

import numpy as np
from ptx_values import Array

__all__ = ["element_addresses", "fragments", "left_operand"]

_PITCH = {1: 128, 2: 64, 3: 32}  # bytes of a row of each kind of swizzle


def element_addresses(descriptor: int, rows: int, k: int, size: int, transposed: bool) -> Array:
    """[rows, k]: addresses of elements of `size` bytes. A row's elements lie side by side, or, if
    transposed, those of 128 (64, 32) bytes of rows for the same k.
    """
    start, leading, stride = ((descriptor >> at & 0x3FFF) << 4 for at in (0, 16, 32))
    if descriptor >> 49 & 7:
        raise NotImplementedError("a base offset of wgmma's descriptor")
    row, column = np.arange(rows)[:, None], np.arange(k)[None, :]
    swizzle = descriptor >> 62 & 3
    if swizzle == 0:
        if transposed:
            raise NotImplementedError("wgmma: transposed without a swizzle")
        piece = 16 // size
        at = row // 8 * stride + row % 8 * 16 + column // piece * leading + column % piece * size
        return np.asarray(start + at)
    pitch = _PITCH[swizzle]
    if transposed:
        wide = pitch // size
        at = row % wide * size + row // wide * leading + column % 8 * pitch + column // 8 * stride
    else:
        at = row // 8 * stride + row % 8 * pitch + column * size
    found = start + at
    return np.asarray(found ^ (found >> 3 & (pitch - 16)))


def fragments(numbers: Array) -> Array:
    """A warpgroup's results [64, n] by thread: [128, n / 2], as the results of mma.m16n8 are laid
    out, one block of eight columns after the other.
    """
    n = numbers.shape[1]
    parts = numbers.reshape(4, 2, 8, n // 8, 4, 2)  # warp, half, group, block, thread, place
    return parts.transpose(0, 2, 4, 3, 1, 5).reshape(128, n // 2)


def left_operand(registers: Array) -> Array:
    """A warpgroup's left operand [64, k] of [128 threads, 4 registers, values]: that of
    mma.m16n8kK for each warp.
    """
    values = registers.shape[2]
    parts = registers.reshape(4, 8, 4, 2, 2, values)  # warp, group, thread, half of k, of rows
    return parts.transpose(0, 4, 1, 3, 2, 5).reshape(64, 8 * values)
