"""Weights of four bits to the floats that tensor cores multiply, made in their registers.

A chunk of 128 inputs of a row is 16 words of 32 bits (weight_format.py). A thread that loads four
of them has, of eight runs of 16 inputs, those that the left operand of m16n8k16 and m64nNk16 wants
of it: nothing is exchanged between threads. Two words give the same nibble at once, as pairs: two
permutations of bytes, and for each pair a shift and one `and`-`or` that makes of nibble q the
number 1 + q / 16, whose sign and exponent are constant. q - 8 takes one more (exact) operation.
"""

from __future__ import annotations

import os

import triton
import triton.language as tl

__all__ = ["COMPILED", "inputs_of", "nibble", "nibble_floats", "rounded_product",
           "rounded_sum"]  # fmt: skip

# Triton's interpreter has no assembly, and no products of bfloat16
COMPILED = tl.constexpr(os.environ.get("TRITON_INTERPRET", "0") != "1")


def _assembly(shifts: tuple[int, ...], mask: str, one: str, end: str = "") -> str:
    """Nibbles 0..7 of the words $8 and $9 to eight pairs of floats, $0..$7.

    shifts: of nibbles 0..3 of a half word to the upper end of a float's fraction, under `mask`;
    `one`: two floats 1.0; `end`: what is done with each pair {0}.
    """
    lines = [".reg .b32 a, b, s;", "prmt.b32 a, $8, $9, 0x5410;", "prmt.b32 b, $8, $9, 0x7632;"]
    for i in range(8):
        shift = shifts[i % 4]
        lines.append(f"{'shl.b32' if shift > 0 else 'shr.u32'} s, {'ab'[i // 4]}, {abs(shift)};")
        lines.append(f"lop3.b32 ${i}, s, {mask}, {one}, 0xEA;")
    if end:
        lines += [".reg .b32 m, n;", end.partition("|")[0]]
        lines += [f"{end.partition('|')[2].format(f'${i}')};" for i in range(8)]
    return "{ " + " ".join(lines) + " }"


_BFLOATS = ((3, -1, -5, -9), "0x00780078", "0x3F803F80")
_HALVES = ((6, 2, -2, -6), "0x03C003C0", "0x3C003C00")
_SIXTEENTHS = "mov.b32 m, {}; mov.b32 n, {};|fma.rn.{}x2 {{0}}, {{0}}, m, n"  # 16 · value - 24
BFLOATS = tl.constexpr(_assembly(*_BFLOATS))
HALVES = tl.constexpr(_assembly(*_HALVES))
EXACT_BFLOATS = tl.constexpr(
    _assembly(*_BFLOATS, _SIXTEENTHS.format("0x41804180", "0xC1C0C1C0", "bf16"))
)
EXACT_HALVES = tl.constexpr(
    _assembly(*_HALVES, _SIXTEENTHS.format("0x4C004C00", "0xCE00CE00", "f16"))
)
OPERANDS = tl.constexpr("=&r,=&r,=&r,=&r,=&r,=&r,=&r,=&r,r,r")


@triton.jit
def nibble(words, PLACE: tl.constexpr):
    """Nibble PLACE of int32 words, 0..15."""
    return (words >> (4 * PLACE)) & 15


@triton.jit
def _interpreted(words, PLACE: tl.constexpr, dtype: tl.constexpr, EXACT: tl.constexpr):
    value = nibble(words, PLACE)
    if dtype == tl.int8:
        result = (value - 8).to(tl.int8)
    elif EXACT:
        result = (value.to(tl.float32) - 8.0).to(dtype)
    else:
        result = (1.0 + value.to(tl.float32) / 16.0).to(dtype)
    return result


@triton.jit
def nibble_floats(words, dtype: tl.constexpr, EXACT: tl.constexpr):
    """Of int32 words, for each of their eight nibbles q: q - 8 if EXACT, else 1 + q / 16. A tuple
    of eight tensors of `dtype`, which may be int8 where EXACT.
    """
    if COMPILED and dtype == tl.bfloat16:
        return tl.inline_asm_elementwise(
            EXACT_BFLOATS if EXACT else BFLOATS, OPERANDS, [words],
            (tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16,
             tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16), True, 2,
        )  # fmt: skip
    elif COMPILED and dtype == tl.float16:
        return tl.inline_asm_elementwise(
            EXACT_HALVES if EXACT else HALVES, OPERANDS, [words],
            (tl.float16, tl.float16, tl.float16, tl.float16,
             tl.float16, tl.float16, tl.float16, tl.float16), True, 2,
        )  # fmt: skip
    else:
        return (
            _interpreted(words, 0, dtype, EXACT), _interpreted(words, 1, dtype, EXACT),
            _interpreted(words, 2, dtype, EXACT), _interpreted(words, 3, dtype, EXACT),
            _interpreted(words, 4, dtype, EXACT), _interpreted(words, 5, dtype, EXACT),
            _interpreted(words, 6, dtype, EXACT), _interpreted(words, 7, dtype, EXACT),
        )  # fmt: skip


@triton.jit
def fragment(values):
    """[outputs, 16], made of one nibble of a chunk's words: the same by 16 consecutive inputs."""
    by_lane = tl.reshape(values, (values.shape[0], 4, 2, 2))
    return tl.reshape(tl.permute(by_lane, (0, 2, 1, 3)), (values.shape[0], 16))


@triton.jit
def side_by_side(first, second):
    """[outputs, inputs] each: the inputs of `first`, then those of `second`."""
    both = tl.permute(tl.join(first, second), (0, 2, 1))
    return tl.reshape(both, (first.shape[0], 2 * first.shape[1]))


@triton.jit
def inputs_of(values, PLACE: tl.constexpr, RUNS: tl.constexpr):
    """[outputs, 16 * RUNS], consecutive inputs from nibble PLACE on, of nibble_floats' tuple."""
    if RUNS == 1:
        found = fragment(values[PLACE])
    else:
        HALF: tl.constexpr = RUNS // 2
        found = side_by_side(inputs_of(values, PLACE, HALF), inputs_of(values, PLACE + HALF, HALF))
    return found


@triton.jit
def rounded_product(a, b):
    """a · b, rounded once to their type: two at once where it is narrow."""
    if COMPILED:
        return a * b
    else:
        return (a.to(tl.float32) * b.to(tl.float32)).to(a.dtype)


@triton.jit
def rounded_sum(a, b):
    """a + b in their type."""
    if COMPILED:
        return a + b
    else:
        return (a.to(tl.float32) + b.to(tl.float32)).to(a.dtype)
