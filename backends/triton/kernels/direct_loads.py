"""Loads that Triton leaves where they are written.

In a loop with stages Triton takes whatever tl.load brings towards a product through shared memory.
That is right for what comes from memory, and wrong for the few bytes that lie in the L1 cache:
these are loaded by assembly, straight into the registers that want them.
"""

from __future__ import annotations

import triton
import triton.language as tl

from graphwright.backends.triton.kernels.nibbles import COMPILED

__all__ = ["load_bytes", "load_halves", "load_runs", "pairs_of", "prefetch"]

RUNS = tl.constexpr(" ".join(f"ld.global.b32 ${i}, [$8+{32 * i}];" for i in range(8)))
SPLIT = tl.constexpr("mov.b32 {$0, $1}, $2;")


@triton.jit
def load_runs(at, start, k, K: tl.constexpr, WHOLE: tl.constexpr):
    """What `pairs_of` takes, of eight runs of 16 inputs from `start` on: the neighbours k, k + 1 of
    each run. Zeros beyond K. Pointers `at` [n] to inputs k are multiples of 4 bytes.

    They are asked for here, in front of the next barrier: the compiler moves none behind it.
    """
    if COMPILED and WHOLE:
        return tl.inline_asm_elementwise(
            RUNS, "=&r,=&r,=&r,=&r,=&r,=&r,=&r,=&r,l", [(at + start).to(tl.int64)],
            (tl.int32, tl.int32, tl.int32, tl.int32, tl.int32, tl.int32, tl.int32, tl.int32),
            False, 1,
        )  # fmt: skip
    else:
        return (
            load_pairs(at, start, k, K), load_pairs(at, start + 16, k, K),
            load_pairs(at, start + 32, k, K), load_pairs(at, start + 48, k, K),
            load_pairs(at, start + 64, k, K), load_pairs(at, start + 80, k, K),
            load_pairs(at, start + 96, k, K), load_pairs(at, start + 112, k, K),
        )  # fmt: skip


@triton.jit
def load_pairs(at, shift, k, K: tl.constexpr):
    """One of the runs of `load_runs`."""
    inside = shift + k < K
    at += tl.where(inside, shift, -k)
    if COMPILED:
        words = tl.inline_asm_elementwise(
            "ld.global.b32 $0, [$1];", "=r,l", [at.to(tl.int64)], tl.int32, False, 1
        )
        return tl.where(inside, words, 0)
    else:
        pair = tl.load(at[:, None] + tl.arange(0, 2)[None, :])
        return tl.where(inside[:, None], pair, 0.0)


@triton.jit
def prefetch(at):
    """Asks for the 32 bytes at each of these pointers, so that the L2 cache has them soon."""
    if COMPILED:
        tl.inline_asm_elementwise(
            "prefetch.global.L2 [$1]; mov.b32 $0, 0;", "=r,l", [at.to(tl.int64)], tl.int32, False, 1
        )


@triton.jit
def pairs_of(words, dtype: tl.constexpr):
    """[n, 2] of bfloat16 or float16: a run of what load_runs has asked for."""
    if not COMPILED:
        return words
    elif dtype == tl.bfloat16:
        low, high = tl.inline_asm_elementwise(
            SPLIT, "=h,=h,r", [words], (tl.bfloat16, tl.bfloat16), True, 1
        )
        return tl.join(low, high)
    else:
        low, high = tl.inline_asm_elementwise(
            SPLIT, "=h,=h,r", [words], (tl.float16, tl.float16), True, 1
        )
        return tl.join(low, high)


@triton.jit
def load_halves(at):
    """float32, of pointers to float16."""
    if COMPILED:
        return tl.inline_asm_elementwise(
            "{ .reg .b16 h; ld.global.b16 h, [$1]; cvt.f32.f16 $0, h; }", "=f,l",
            [at.to(tl.int64)], tl.float32, True, 1,
        )  # fmt: skip
    else:
        return tl.load(at).to(tl.float32)


@triton.jit
def load_bytes(at):
    """float32, of pointers to uint8."""
    if COMPILED:
        return tl.inline_asm_elementwise(
            "{ .reg .b32 b; ld.global.u8 b, [$1]; cvt.rn.f32.u32 $0, b; }", "=f,l",
            [at.to(tl.int64)], tl.float32, True, 1,
        )  # fmt: skip
    else:
        return tl.load(at).to(tl.float32)
