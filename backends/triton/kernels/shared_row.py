"""A row of x in shared memory: normed once by a program, read by all its tensor cores.

Triton places tensors in shared memory where it wants them there, and for as long. A row that all
warps of a program read again and again, in another order than it is written, is put there by
assembly, into memory that it declares beside Triton's own.

The row is cut into chunks of 128 inputs, eight runs of 16. Of each run lane t wants two pairs, as
the right operand of m16n8k16: inputs 2t, 2t + 1 (w = 0), and 2t + 8, 2t + 9 (w = 1). They lie side
by side, and next to those of the run behind: a load of 16 bytes brings what two products want, in
registers that follow each other. Behind the row are sums of groups of its inputs.

The interpreter knows no assembly; there the row stays where it is.
"""

from __future__ import annotations

import triton
import triton.language as tl

from graphwright.backends.triton.kernels.nibbles import COMPILED, rounded_product

__all__ = ["MOST_INPUTS", "put_row", "take_chunk", "take_sum"]

MOST_INPUTS = 20480  # of a row: what assembly declares is 48 KB at most

SPLIT = tl.constexpr("mov.b32 {$0, $1}, $2;")
PUT_PAIR = tl.constexpr(
    "{ .reg .b32 pair; mov.b32 pair, {$2, $3}; st.shared.b32 [$1], pair; mov.b32 $0, 0; }"
)
PUT_SUM = tl.constexpr("st.shared.f32 [$1], $2; mov.b32 $0, 0;")
TAKE_SUM = tl.constexpr("ld.shared.f32 $0, [$1];")
TAKE = tl.constexpr(
    " ".join(
        f"ld.shared.v4.b32 {{${4 * i}, ${4 * i + 1}, ${4 * i + 2}, ${4 * i + 3}}}, [$16+{64 * i}];"
        for i in range(4)
    )
)
TAKEN = tl.constexpr(",".join(["=&r"] * 16) + ",r")


@triton.constexpr_function
def memory(size):
    """Assembly that declares so many bytes, and says where they are."""
    return f"{{ .shared .align 16 .b8 row[{size}]; mov.u32 $0, row; }}"


@triton.jit
def put_row(x, norm, K: tl.constexpr, LENGTH: tl.constexpr, GROUP: tl.constexpr,
            BLOCK: tl.constexpr):  # fmt: skip
    """(where the row x, times the norm's weight if there is one, lies in shared memory, the sum of
    the squares of x, 0 without a norm). x [K] begins at a multiple of 4 bytes; it becomes LENGTH
    inputs, the last ones zeros, BLOCK of them at a time, and has a sum for GROUP of them. Ends with
    a barrier.
    """
    start = 0
    if COMPILED:
        size: tl.constexpr = 2 * LENGTH + 4 * (LENGTH // GROUP)
        start = tl.inline_asm_elementwise(memory(size), "=r", [], tl.int32, False, 1)
    i = tl.arange(0, BLOCK // 2)
    groups = tl.arange(0, BLOCK // GROUP)
    squares = tl.zeros((BLOCK // 2,), tl.float32)
    for first in tl.static_range(0, LENGTH // 2, BLOCK // 2):
        pair = first + i
        low, high = pairs_at(x, pair, K)
        if norm is not None:
            squares += low.to(tl.float32) * low.to(tl.float32)
            squares += high.to(tl.float32) * high.to(tl.float32)
            low_norm, high_norm = pairs_at(norm, pair, K)
            low, high = rounded_product(low, low_norm), rounded_product(high, high_norm)
        if COMPILED:
            # chunk, run / 2, run % 2, w, t to chunk, run / 2, t, run % 2, w
            place = pair // 16 * 16 + pair % 4 * 4 + pair // 4 % 4
            tl.inline_asm_elementwise(
                PUT_PAIR, "=r,r,h,h", [start + place * 4, low, high], tl.int32, False, 1
            )
            both = low.to(tl.float32) + high.to(tl.float32)
            sums = tl.sum(tl.reshape(both, (BLOCK // GROUP, GROUP // 2)), axis=1)
            at = start + 2 * LENGTH + (first * 2 // GROUP + groups) * 4
            tl.inline_asm_elementwise(PUT_SUM, "=r,r,f", [at, sums], tl.int32, False, 1)
    square = tl.sum(squares, axis=0)
    if COMPILED:
        tl.debug_barrier()
    return start, square


@triton.jit
def pairs_at(x, pair, K: tl.constexpr):
    """Inputs 2 pair and 2 pair + 1, zeros beyond K."""
    inside = pair < K // 2
    if COMPILED:
        words = tl.load(x.to(tl.pointer_type(tl.int32), bitcast=True) + pair, mask=inside, other=0)
        return pair_of(words, x.dtype.element_ty)
    else:
        low = tl.load(x + 2 * pair, mask=inside, other=0.0)
        return low, tl.load(x + 2 * pair + 1, mask=inside, other=0.0)


@triton.jit
def pair_of(words, dtype: tl.constexpr):
    """The two numbers of bfloat16 or float16 in int32 words."""
    if dtype == tl.bfloat16:
        return tl.inline_asm_elementwise(
            SPLIT, "=h,=h,r", [words], (tl.bfloat16, tl.bfloat16), True, 1
        )
    else:
        return tl.inline_asm_elementwise(
            SPLIT, "=h,=h,r", [words], (tl.float16, tl.float16), True, 1
        )


@triton.jit
def take_chunk(start, x, norm, chunk, K: tl.constexpr, PARTS: tl.constexpr):
    """Of chunk + part, eight runs as the right operand's columns lie in the warp of each part, all
    columns alike: a tuple of [part * column * t, 2, w] of x's type.
    """
    kind: tl.constexpr = x.dtype.element_ty
    i = tl.arange(0, PARTS * 32)
    part, t = i // 32, i % 4
    if COMPILED:
        words = tl.inline_asm_elementwise(
            TAKE, TAKEN, [start + (chunk + part) * 256 + t * 16],
            (tl.int32, tl.int32, tl.int32, tl.int32, tl.int32, tl.int32, tl.int32, tl.int32,
             tl.int32, tl.int32, tl.int32, tl.int32, tl.int32, tl.int32, tl.int32, tl.int32),
            False, 1,
        )  # fmt: skip
        return (
            run_of(words[0], words[1], kind), run_of(words[2], words[3], kind),
            run_of(words[4], words[5], kind), run_of(words[6], words[7], kind),
            run_of(words[8], words[9], kind), run_of(words[10], words[11], kind),
            run_of(words[12], words[13], kind), run_of(words[14], words[15], kind),
        )  # fmt: skip
    else:
        k = (chunk + part) * 128 + t * 2
        return (
            run_at(x, norm, k, K), run_at(x, norm, k + 16, K), run_at(x, norm, k + 32, K),
            run_at(x, norm, k + 48, K), run_at(x, norm, k + 64, K), run_at(x, norm, k + 80, K),
            run_at(x, norm, k + 96, K), run_at(x, norm, k + 112, K),
        )  # fmt: skip


@triton.jit
def run_of(low, high, kind: tl.constexpr):
    """[.., 2, w] of the words of pairs w = 0 and 1: in the registers of a thread."""
    one, two = pair_of(low, kind)
    three, four = pair_of(high, kind)
    return tl.join(tl.join(one, two), tl.join(three, four))


@triton.jit
def run_at(x, norm, k, K: tl.constexpr):
    """The same of x [K] as it is, times the norm's weight: inputs k, k + 1, and k + 8, k + 9."""
    place = k[:, None, None] + tl.arange(0, 2)[None, :, None] + 8 * tl.arange(0, 2)[None, None, :]
    value = tl.load(x + place, mask=place < K, other=0.0)
    if norm is not None:
        value = rounded_product(value, tl.load(norm + place, mask=place < K, other=0.0))
    return value


@triton.jit
def take_sum(start, x, norm, group, K: tl.constexpr, LENGTH: tl.constexpr, GROUP: tl.constexpr):
    """The sums of groups [n] of the row."""
    if COMPILED:
        at = start + 2 * LENGTH + group * 4
        return tl.inline_asm_elementwise(TAKE_SUM, "=f,r", [at], tl.float32, False, 1)
    else:
        k = group[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
        value = tl.load(x + k, mask=k < K, other=0.0)
        if norm is not None:
            value = rounded_product(value, tl.load(norm + k, mask=k < K, other=0.0))
        return tl.sum(value.to(tl.float32), axis=1)
