"""A kernel that reads weights into the L2 cache, gently: few loads in flight, nothing kept."""

from __future__ import annotations

import triton
import triton.language as tl

from graphwright.backends.triton.kernels.kernel import TritonKernel, define

__all__ = ["DUMP_BYTES", "read_ahead"]

_BLOCK = 512  # words of 32 bits: 16 bytes a thread
DUMP_BYTES = 4 * _BLOCK


@triton.jit
def read_ahead_kernel(
    weight, dump, WORDS: tl.constexpr, PROGRAMS: tl.constexpr, DEEP: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    i = tl.arange(0, BLOCK)
    seen = tl.zeros((BLOCK,), tl.int32)
    for first in range(tl.program_id(0) * BLOCK * DEEP, WORDS, PROGRAMS * BLOCK * DEEP):
        for step in tl.static_range(DEEP):
            at = first + step * BLOCK + i
            seen ^= tl.load(weight + at, mask=at < WORDS, other=0, cache_modifier=".cg")
    # without a use of what is loaded there would be no loads; where it is stored nobody looks
    tl.store(dump + i, seen, mask=seen == 0x5EED1234)


def read_ahead(size: int, programs: int, deep: int) -> TritonKernel:
    """Pointers: weight (of which `size` bytes, a multiple of 4, are read), dump (DUMP_BYTES).

    programs * deep * 2 KB are in flight.
    """
    return define(
        "read_ahead",
        read_ahead_kernel,
        {"weight": "int32", "dump": "int32"},
        {"WORDS": size // 4, "PROGRAMS": programs, "DEEP": deep, "BLOCK": _BLOCK},
        grid=lambda _: (programs, 1, 1),
        num_warps=4,
    )
