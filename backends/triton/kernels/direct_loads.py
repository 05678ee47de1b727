"""Loads that Triton leaves where they are written.

In a loop with stages Triton takes whatever tl.load brings towards a product through shared memory.
That is right for what comes from memory, and wrong for the few bytes that lie in the L1 cache:
these are loaded by assembly, straight into the registers that want them.
"""

from __future__ import annotations

import triton
import triton.language as tl

from graphwright.backends.triton.kernels.nibbles import COMPILED

__all__ = ["load_bytes", "load_halves"]


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
