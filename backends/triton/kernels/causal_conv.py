"""Short causal convolutions of a ragged batch, and the rolling state that they read.

The state of a sequence lies in the place of its first block: rows [taps - 1, channels], oldest
first. `causal_conv` only reads it, `roll_state` writes it afterwards: a token reads rows that the
end of the same step replaces. Weights are as in the op, [outputs, taps].
"""

from __future__ import annotations

import triton
import triton.language as tl

from graphwright.backends.triton.kernels.kernel import TritonKernel, define
from graphwright.backends.triton.kernels.sizes import next_power_of_two, quotient_up

__all__ = ["causal_conv", "roll_state"]

_BLOCK = 512  # channels of one program


@triton.jit
def causal_conv_kernel(
    batch, x, weight, bias, state, positions, sequences, query_start, block_table, out,
    OUTPUTS: tl.constexpr, EACH: tl.constexpr, CHANNELS: tl.constexpr, TAPS: tl.constexpr,
    X_STRIDE: tl.constexpr, BLOCK_STRIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0)
    if token >= tl.load(batch):
        return
    output = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = output < OUTPUTS
    channel = output // EACH
    sequence = tl.load(sequences + token)
    local = token - tl.load(query_start + sequence)
    position = tl.load(positions + token).to(tl.int32)
    block = tl.load(block_table + sequence * tl.load(batch + 2)).to(tl.int64)
    held = state + block * BLOCK_STRIDE
    total = tl.zeros((BLOCK,), tl.float32)
    for tap in tl.static_range(TAPS):
        back = TAPS - 1 - tap
        given = inside & (channel * 0 + back <= local)
        kept = inside & (channel * 0 + back > local) & (channel * 0 + back <= position)
        row = (token - back).to(tl.int64)
        value = tl.load(x + row * X_STRIDE + channel, mask=given, other=0.0).to(tl.float32)
        place = (TAPS - 1 - back + local) * CHANNELS + channel
        value += tl.load(held + place, mask=kept, other=0.0).to(tl.float32)
        factor = tl.load(weight + output * TAPS + tap, mask=inside, other=0.0)
        total += value * factor.to(tl.float32)
    if bias is not None:
        total += tl.load(bias + output, mask=inside, other=0.0).to(tl.float32)
    at = out + token.to(tl.int64) * OUTPUTS + output
    tl.store(at, total.to(out.dtype.element_ty), mask=inside)


@triton.jit
def roll_state_kernel(
    batch, x, state, positions, query_start, block_table,
    CHANNELS: tl.constexpr, KEPT: tl.constexpr, X_STRIDE: tl.constexpr,
    BLOCK_STRIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    sequence = tl.program_id(0)
    if sequence >= tl.load(batch + 1):
        return
    begin, end = tl.load(query_start + sequence), tl.load(query_start + sequence + 1)
    count = end - begin
    if count == 0:
        return
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = channel < CHANNELS
    known = tl.load(positions + begin).to(tl.int32)
    block = tl.load(block_table + sequence * tl.load(batch + 2)).to(tl.int64)
    held = state + block * BLOCK_STRIDE
    # A row is read by the thread that replaces it, and rows further on are still the old ones.
    for row in range(KEPT):
        new = inside & (channel * 0 + row >= KEPT - count)
        old = inside & (channel * 0 + row < KEPT - count)
        old = old & (channel * 0 + row >= KEPT - count - known)
        source = (end - KEPT + row).to(tl.int64)
        value = tl.load(x + source * X_STRIDE + channel, mask=new, other=0.0).to(tl.float32)
        place = (row + count) * CHANNELS + channel
        value += tl.load(held + place, mask=old, other=0.0).to(tl.float32)
        tl.store(held + row * CHANNELS + channel, value.to(state.dtype.element_ty), mask=inside)


def causal_conv(
    channels: int, outputs: int, taps: int, *, x_stride: int, block_stride: int,
    weight: str = "float32", bias: str | None = None, state: str = "float32",
    dtype: str = "float32",
) -> TritonKernel:  # fmt: skip
    """gw.causal_conv but for its last line. Pointers: batch, x (rows of `channels`), weight
    [outputs, taps], (bias [outputs]), state, positions int64 [T], sequences int32 [T] (see
    token_slots), query_start, block_table, out [T, outputs].

    The state starts at its part of block 0; blocks lie `block_stride` of its elements apart.
    """
    assert outputs % channels == 0 and taps >= 2
    block = min(_BLOCK, next_power_of_two(outputs))
    return define(
        "causal_conv",
        causal_conv_kernel,
        {
            "batch": "int32", "x": dtype, "weight": weight, "bias": bias, "state": state,
            "positions": "int64", "sequences": "int32", "query_start": "int32",
            "block_table": "int32", "out": dtype,
        },
        {
            "OUTPUTS": outputs, "EACH": outputs // channels, "CHANNELS": channels, "TAPS": taps,
            "X_STRIDE": x_stride, "BLOCK_STRIDE": block_stride, "BLOCK": block,
        },
        grid=lambda size: (size["T"], quotient_up(outputs, block), 1),
        num_warps=4,
    )  # fmt: skip


def roll_state(
    channels: int, taps: int, *, x_stride: int, block_stride: int, state: str = "float32",
    dtype: str = "float32", sequences: int = 256,
) -> TritonKernel:  # fmt: skip
    """The end of gw.causal_conv: each sequence of the step keeps its last taps - 1 inputs, those
    before its start being zero. Pointers: batch, x, state, positions, query_start, block_table.

    `sequences`: the most that a step may have.
    """
    block = min(_BLOCK, next_power_of_two(channels))
    return define(
        "roll_state",
        roll_state_kernel,
        {
            "batch": "int32", "x": dtype, "state": state, "positions": "int64",
            "query_start": "int32", "block_table": "int32",
        },
        {
            "CHANNELS": channels, "KEPT": taps - 1, "X_STRIDE": x_stride,
            "BLOCK_STRIDE": block_stride, "BLOCK": block,
        },
        grid=lambda size: (sequences, quotient_up(channels, block), 1),
        num_warps=4,
    )  # fmt: skip
