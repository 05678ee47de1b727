"""The product of a single row by w4 weights, on tensor cores: decode of one sequence.

It is bound by the bytes of the weights, if it gets by with few instructions and waits for nothing:
at 4 TB/s an H200's multiprocessor receives 36 weights a cycle and issues 128 operations, and here
a weight takes a little more than two (docs/triton-kernels.md counts them). What the loop needs is
asked for a turn before: words of weights go through shared memory, which Triton's stages fill; what
lies in the caches, x, the norm's weight and scales, is loaded into the registers that want it, in
front of a barrier, behind which ptxas would move it otherwise. nibble_rows.py has the arithmetic.
"""

from __future__ import annotations

import triton
import triton.language as tl

from graphwright.backends.triton.kernels.direct_loads import load_runs, pairs_of, prefetch
from graphwright.backends.triton.kernels.epilogue import early_inputs, finish
from graphwright.backends.triton.kernels.nibble_rows import (
    known_row,
    left_operand,
    minus_zero,
    result_of,
    scale_of,
    scales_of,
    with_group,
    words_of,
)
from graphwright.backends.triton.kernels.nibbles import (
    nibble_floats,
    place_of_row,
    rounded_product,
)

__all__ = ["one_row_kernel"]


@triton.jit
def square_of(x, K: tl.constexpr, BLOCK: tl.constexpr):
    """The sum of squares of k inputs."""
    k = tl.arange(0, BLOCK)
    sums = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, K, BLOCK):
        value = tl.load(x + start + k, mask=start + k < K, other=0.0).to(tl.float32)
        sums += value * value
    return tl.sum(sums, axis=0)


@triton.jit
def one_row_kernel(
    batch, x, weight, scale, zero, norm, bias, residual, cos, sin, slots, out, k_cache, v_cache,
    N: tl.constexpr, K: tl.constexpr, KIND: tl.constexpr, GROUP: tl.constexpr,
    GROUPS: tl.constexpr, ROW: tl.constexpr, ACTIVATION: tl.constexpr, GATE: tl.constexpr,
    UP: tl.constexpr, TURN: tl.constexpr, EPS: tl.constexpr, COUNT: tl.constexpr,
    OUTPUTS: tl.constexpr, PARTS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    if COUNT > 0:  # noqa: SIM102 - a step has a token, but perhaps no sampled row
        if tl.load(batch + COUNT) == 0:
            return
    CHUNKS: tl.constexpr = (K + 127) // 128
    WHOLE: tl.constexpr = CHUNKS % PARTS == 0 and K % 128 == 0  # parts are alike
    kind: tl.constexpr = x.dtype.element_ty
    first = tl.program_id(0) * OUTPUTS
    part = tl.arange(0, PARTS)
    own, words_at = words_of(weight, first, N, ROW, GATE, UP, TURN, OUTPUTS, PARTS)
    # 16 inputs as the right operand's columns lie in a warp, two to a thread, all columns alike:
    # input / 8 * parts * 8 columns * input / 2 % 4
    i = tl.arange(0, PARTS * 64)
    k = i // 32 % PARTS * 128 + i // (32 * PARTS) * 8 + i % 4 * 2
    x_at = x + k
    if norm is not None:
        norm_at = norm + k
    minus = minus_zero(PARTS, 16, kind)
    total = tl.zeros((PARTS, OUTPUTS, 8), tl.float32)
    row = tl.arange(0, 8).to(tl.int64)
    if norm is not None:
        # in front of the loop, while its first words are on their way: x is in the L1 cache then
        o = known_row(first + tl.arange(0, OUTPUTS), N, GATE, UP, TURN)
        sector = tl.minimum(tl.arange(0, 4 * PARTS) * 32, ROW - 1)
        prefetch((weight + place_of_row(o, ROW))[:, None] + (sector + sector // 64 * 448)[None, :])
    early = early_inputs(
        row, row < 1, first, bias, residual, cos, sin, slots, N, 0, GATE, UP, TURN, OUTPUTS, True
    )  # fmt: skip
    if norm is not None:
        squares = square_of(x, K, 256 * PARTS)
    next_x = load_runs(x_at, 0, k, K, WHOLE)
    if norm is not None:
        next_norm = load_runs(norm_at, 0, k, K, WHOLE)
    if GROUP == 128:
        next_scale = scale_of(scale, part, first, N, GATE, UP, TURN, GROUPS, OUTPUTS)
    for start in tl.range(0, CHUNKS, PARTS, num_stages=STAGES):
        chunk = start + part
        if GROUP == 128:
            scales = (next_scale,)
            next_scale = scale_of(scale, chunk + PARTS, first, N, GATE, UP, TURN, GROUPS, OUTPUTS)
        runs = next_x
        ahead = (start + PARTS) * 128
        if WHOLE:
            ahead = tl.minimum(ahead, K - PARTS * 128)
        next_x = load_runs(x_at, ahead, k, K, WHOLE)
        if norm is not None:
            norms = next_norm
            next_norm = load_runs(norm_at, ahead, k, K, WHOLE)
        # of chunks behind the last the words are any, and the scales are zero
        words = tl.load(words_at + (tl.minimum(start + own, CHUNKS - 1) * 128)[:, None])
        if GROUP < 128:
            scales = scales_of(scale, chunk, first, N, GATE, UP, TURN, GROUP, GROUPS, OUTPUTS)
        floats = nibble_floats(words, kind, False)
        offset = tl.zeros((PARTS, 16, 8), tl.float32)
        sums = tl.zeros((PARTS, OUTPUTS, 8), tl.float32)
        for place in tl.static_range(8):
            value = pairs_of(runs[place], kind)
            if norm is not None:
                value = rounded_product(value, pairs_of(norms[place], kind))
            value = tl.reshape(value, (2, PARTS, 8, 4, 2))
            value = tl.reshape(tl.permute(value, (1, 0, 3, 4, 2)), (PARTS, 16, 8))
            offset = tl.dot(minus, value, offset)
            sums = tl.dot(left_operand(floats[place], PARTS, OUTPUTS), value, sums)
            if (16 * place + 16) % GROUP == 0:
                group = chunk * (128 // GROUP) + 16 * place // GROUP
                factor = scales[16 * place // GROUP]
                total = with_group(
                    total, sums, offset, factor, zero, group, first, N, GATE, UP, TURN, GROUPS,
                    WHOLE, kind,
                )  # fmt: skip
                offset = tl.zeros((PARTS, 16, 8), tl.float32)
                sums = tl.zeros((PARTS, OUTPUTS, 8), tl.float32)
    result = result_of(total, GATE, UP, TURN, kind)
    if norm is not None:
        result = result * tl.rsqrt(squares / K + EPS)
    finish(
        result, early, row, row < 1, first, bias, residual, cos, sin, slots, out, k_cache, v_cache,
        N, 0, ACTIVATION, GATE, UP, TURN, True,
    )  # fmt: skip
