"""Weights of four bits to the floats that tensor cores multiply, made in their registers.

A chunk of 128 inputs of a row is 16 words of 32 bits (weight_format.py). A thread that loads four
of them has, of eight runs of 16 inputs, those that the left operand of m16n8k16 and m64nNk16 wants
of it: nothing is exchanged between threads. A word holds four pairs of neighbours: for each a shift
and one `and`-`or` make of nibble q a number BASE + UNIT q, whose sign and exponent are constant. In
bfloat16 it is 128 + q, where the first pair needs no shift, in float16 1 + q / 16. q - 8 takes one
more (exact) operation.
"""

from __future__ import annotations

import os

import triton
import triton.language as tl

__all__ = ["COMPILED", "inputs_of", "nibble", "nibble_floats", "place_of_row", "rounded_product",
           "rounded_sum"]  # fmt: skip

# Triton's interpreter has no assembly, and no products of bfloat16
COMPILED = tl.constexpr(os.environ.get("TRITON_INTERPRET", "0") != "1")


def _assembly(shifts: tuple[int, ...], mask: str, base: str, end: str = "") -> str:
    """The pairs of the words $8 and $9, four of each, to pairs of floats, $0..$7.

    shifts: of nibbles 0..3 of a half word to their place in a float's fraction, under `mask`;
    `base`: two floats BASE; `end`: what is done with each pair {0}.
    """
    lines = [".reg .b32 s;"]
    for i in range(8):
        shift, word = shifts[i % 4], f"${8 + i // 4}"
        if shift:
            lines.append(f"{'shl.b32' if shift > 0 else 'shr.u32'} s, {word}, {abs(shift)};")
        lines.append(f"lop3.b32 ${i}, {'s' if shift else word}, {mask}, {base}, 0xEA;")
    if end:
        lines += [".reg .b32 m, n;", end.partition("|")[0]]
        lines += [f"{end.partition('|')[2].format(f'${i}')};" for i in range(8)]
    return "{ " + " ".join(lines) + " }"


_BFLOATS = ((0, -4, -8, -12), "0x000F000F", "0x43004300")
_HALVES = ((6, 2, -2, -6), "0x03C003C0", "0x3C003C00")
_EXACT = "mov.b32 m, {}; mov.b32 n, {};|fma.rn.{}x2 {{0}}, {{0}}, m, n"
BFLOATS = tl.constexpr(_assembly(*_BFLOATS))
HALVES = tl.constexpr(_assembly(*_HALVES))
EXACT_BFLOATS = tl.constexpr(  # value - 136
    _assembly(*_BFLOATS, _EXACT.format("0x3F803F80", "0xC308C308", "bf16"))
)
EXACT_HALVES = tl.constexpr(  # 16 · value - 24
    _assembly(*_HALVES, _EXACT.format("0x4C004C00", "0xCE00CE00", "f16"))
)


def _integers() -> str:
    """The nibbles of the four words from $8 on to q - 8, four bytes for each run, $0..$7."""
    lines = [".reg .b32 a, s;"]
    for h in range(2):
        for first, bytes_ in ((0, "0x6420"), (2, "0x7531")):
            lines.append(f"prmt.b32 a, ${8 + h}, ${10 + h}, {bytes_};")
            for run in (4 * h + first, 4 * h + first + 1):
                lines.append("lop3.b32 s, a, 0x0F0F0F0F, 0x80808080, 0xEA;")
                lines.append("sub.u32 s, s, 0x08080808;")
                lines.append(f"xor.b32 ${run}, s, 0x80808080;")
                lines.append("shr.u32 a, a, 4;")
    return "{ " + " ".join(lines) + " }"


INTEGERS = tl.constexpr(_integers())
OPERANDS = tl.constexpr("=&r,=&r,=&r,=&r,=&r,=&r,=&r,=&r,r,r")


@triton.jit
def place_of_row(n, ROW: tl.constexpr):
    """The byte with which row n's first chunk begins: 512 further begins the next one."""
    return (n >> 3) * (8 * ROW) + (n & 7) * 64


@triton.jit
def nibble(words, PLACE: tl.constexpr):
    """Nibble PLACE of int32 words, 0..15."""
    return (words >> (4 * PLACE)) & 15


@triton.jit
def _interpreted(words, PAIR: tl.constexpr, dtype: tl.constexpr, EXACT: tl.constexpr):
    """Pair PAIR of every second word, side by side."""
    pairs = tl.join(nibble(words, PAIR), nibble(words, PAIR + 4))
    value = tl.reshape(pairs, (words.shape[0], 2 * words.shape[1]))
    if dtype == tl.int8:
        result = (value - 8).to(tl.int8)
    elif EXACT:
        result = (value.to(tl.float32) - 8.0).to(dtype)
    elif dtype == tl.bfloat16:
        result = (128.0 + value.to(tl.float32)).to(dtype)
    else:
        result = (1.0 + value.to(tl.float32) / 16.0).to(dtype)
    return result


@triton.jit
def nibble_floats(words, dtype: tl.constexpr, EXACT: tl.constexpr):
    """Of int32 words [rows, 16] of a chunk, for each run of 16 inputs, in the order t t w v: q - 8
    if EXACT, else BASE + UNIT q. A tuple of eight tensors of `dtype`, with EXACT perhaps int8.
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
    elif COMPILED and dtype == tl.int8:
        return tl.inline_asm_elementwise(
            INTEGERS, "=&r,=&r,=&r,=&r,=&r,=&r,=&r,=&r,r,r,r,r", [words],
            (tl.int8, tl.int8, tl.int8, tl.int8, tl.int8, tl.int8, tl.int8, tl.int8), True, 4,
        )  # fmt: skip
    else:
        low, high = tl.split(tl.reshape(words, (words.shape[0], 8, 2)))
        return (
            _interpreted(low, 0, dtype, EXACT), _interpreted(low, 1, dtype, EXACT),
            _interpreted(low, 2, dtype, EXACT), _interpreted(low, 3, dtype, EXACT),
            _interpreted(high, 0, dtype, EXACT), _interpreted(high, 1, dtype, EXACT),
            _interpreted(high, 2, dtype, EXACT), _interpreted(high, 3, dtype, EXACT),
        )  # fmt: skip


@triton.jit
def fragment(values):
    """[outputs, 16], a run of `nibble_floats`: the same by 16 consecutive inputs."""
    by_lane = tl.reshape(values, (values.shape[0], 4, 2, 2))
    return tl.reshape(tl.permute(by_lane, (0, 2, 1, 3)), (values.shape[0], 16))


@triton.jit
def side_by_side(first, second):
    """[outputs, inputs] each: the inputs of `first`, then those of `second`."""
    both = tl.permute(tl.join(first, second), (0, 2, 1))
    return tl.reshape(both, (first.shape[0], 2 * first.shape[1]))


@triton.jit
def inputs_of(values, PLACE: tl.constexpr, RUNS: tl.constexpr):
    """[outputs, 16 * RUNS], consecutive inputs from run PLACE on, of nibble_floats' tuple."""
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
