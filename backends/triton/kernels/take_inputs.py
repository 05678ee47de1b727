"""The inputs of a step, from pinned memory of the host to where its kernels read them.

As the first launch of a step it belongs to the captured graph: the host starts one thing, and no
copy engine hands over to the multiprocessors. Each program reads the counts, then its part of one
input, with all its loads in flight: two trips to the host and back, of what the step uses alone.

A step may start before the host knows what the step in front of it has chosen. Its tokens are then
rows of that step, whose launches have left the chosen ones in the GPU's memory: one trip more, to
there, for the programs that take tokens.
"""

from __future__ import annotations

import triton
import triton.language as tl

from graphwright.backends.rows import ADAPTER_INPUTS, INPUTS
from graphwright.backends.triton.kernels.kernel import PITCH, ROWS, Size, TritonKernel, define
from graphwright.backends.triton.kernels.sizes import quotient_up

__all__ = ["GIVEN", "given_to", "take_inputs"]

# What the host says of a step; draws [R, 4]: how tokens are to be drawn (runtime/draws.py).
GIVEN = {**INPUTS, "draws": "int64"}


def given_to(adapters: bool) -> dict[str, str]:
    """GIVEN, and behind them what a program with adapters is told."""
    return {**GIVEN, **ADAPTER_INPUTS} if adapters else GIVEN


_BLOCK = 1024  # numbers that a program takes at once
_MOST_PROGRAMS = 32  # of an input; a program goes on behind the others


@triton.jit
def take(source, target, count, BLOCK: tl.constexpr):
    """target[:count] = source[:count], shared by the programs of the first axis."""
    for first in range(tl.program_id(0) * BLOCK, count, tl.num_programs(0) * BLOCK):
        at = first + tl.arange(0, BLOCK)
        tl.store(target + at, tl.load(source + at, mask=at < count), mask=at < count)


@triton.jit
def take_tokens(source, chosen, target, count, BLOCK: tl.constexpr):
    """As `take`; a negative one, -1 - row, is what was chosen for that row, or 0 if nothing was."""
    for first in range(tl.program_id(0) * BLOCK, count, tl.num_programs(0) * BLOCK):
        at = first + tl.arange(0, BLOCK)
        token = tl.load(source + at, mask=at < count, other=0)
        said = tl.load(chosen - 1 - token, mask=token < 0, other=0)  # -1 where a logit was NaN
        token = tl.where(token < 0, tl.maximum(said, 0).to(token.dtype), token)
        tl.store(target + at, token, mask=at < count)


@triton.jit
def take_tables(source, target, count, pitch, POOLS: tl.constexpr, BLOCK: tl.constexpr):
    """As `take`, of each pool; the numbers of the next one lie `pitch` behind."""
    for first in range(tl.program_id(0) * BLOCK, count * POOLS, tl.num_programs(0) * BLOCK):
        number = first + tl.arange(0, BLOCK)
        inside = number < count * POOLS
        at = number // count * pitch + number % count
        tl.store(target + at, tl.load(source + at, mask=inside), mask=inside)


@triton.jit
def take_one(
    which, host_batch, host_tokens, host_positions, host_query_start, host_block_table,
    host_sample_rows, host_draws, chosen, batch, tokens, positions, query_start, block_table,
    sample_rows, draws,
    T: tl.constexpr, B: tl.constexpr, M: tl.constexpr, R: tl.constexpr, PITCH: tl.constexpr,
    POOLS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The input with this number."""
    if which == 0:
        count = tl.load(host_batch + T)
        take_tokens(host_tokens, chosen, tokens, count, BLOCK)
    elif which == 1:
        count = tl.load(host_batch + T)
        take(host_positions, positions, count, BLOCK)
    elif which == 2:
        count = tl.load(host_batch + B) + 1
        take(host_query_start, query_start, count, BLOCK)
    elif which == 3:
        count = tl.load(host_batch + B) * tl.load(host_batch + M)
        if POOLS == 1:
            take(host_block_table, block_table, count, BLOCK)
        else:
            pitch = tl.load(host_batch + PITCH)
            take_tables(host_block_table, block_table, count, pitch, POOLS, BLOCK)
    elif which == 4:
        count = tl.load(host_batch + R) * 4
        take(host_draws, draws, count, BLOCK)
    else:
        count = tl.load(host_batch + R)
        take(host_sample_rows, sample_rows, count, BLOCK)
        if tl.program_id(0) == 0:
            i = tl.arange(0, 8)
            tl.store(batch + i, tl.load(host_batch + i))


@triton.jit
def take_inputs_kernel(
    host_batch, host_tokens, host_positions, host_query_start, host_block_table, host_sample_rows,
    host_draws, chosen, batch, tokens, positions, query_start, block_table, sample_rows, draws,
    T: tl.constexpr, B: tl.constexpr, M: tl.constexpr, R: tl.constexpr, PITCH: tl.constexpr,
    POOLS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    take_one(
        tl.program_id(1), host_batch, host_tokens, host_positions, host_query_start,
        host_block_table, host_sample_rows, host_draws, chosen, batch, tokens, positions,
        query_start, block_table, sample_rows, draws, T, B, M, R, PITCH, POOLS, BLOCK,
    )  # fmt: skip


@triton.jit
def take_inputs_and_adapters_kernel(
    host_batch, host_tokens, host_positions, host_query_start, host_block_table, host_sample_rows,
    host_draws, host_adapters, host_row_adapters, chosen, batch, tokens, positions, query_start,
    block_table, sample_rows, draws, adapters, row_adapters,
    T: tl.constexpr, B: tl.constexpr, M: tl.constexpr, R: tl.constexpr, PITCH: tl.constexpr,
    POOLS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    which = tl.program_id(1)
    if which == 6:
        take(host_adapters, adapters, tl.load(host_batch + T), BLOCK)
    elif which == 7:
        take(host_row_adapters, row_adapters, tl.load(host_batch + R), BLOCK)
    else:
        take_one(
            which, host_batch, host_tokens, host_positions, host_query_start, host_block_table,
            host_sample_rows, host_draws, chosen, batch, tokens, positions, query_start,
            block_table, sample_rows, draws, T, B, M, R, PITCH, POOLS, BLOCK,
        )  # fmt: skip


def take_inputs(*, adapters: bool = False, pools: int = 1) -> TritonKernel:
    """Pointers: GIVEN in memory of the host, what the step in front chose for its sampled rows,
    int32, and GIVEN in the GPU's memory, where what lies behind those of the step stays as it was.
    There are so many block tables, of a pool of blocks each.

    A token -1 - row stands for what was chosen for that row; for 0, where a logit of it was NaN.
    adapters: as well as those, what a program with adapters is told.
    """
    given = given_to(adapters)
    return define(
        "take_inputs_and_adapters" if adapters else "take_inputs",
        take_inputs_and_adapters_kernel if adapters else take_inputs_kernel,
        {
            **{f"host_{name}": dtype for name, dtype in given.items()},
            "chosen": "int32",
            **given,
        },
        {**ROWS, "PITCH": PITCH, "POOLS": pools, "BLOCK": _BLOCK},
        grid=lambda size: _grid(size, len(given)),
        num_warps=4,
    )


def _grid(size: Size, inputs: int) -> tuple[int, int, int]:
    """On the first axis programs of an input: one for two tokens' rows of a block table with some
    hundred entries. On the second the inputs, but for the counts, which one takes along.
    """
    return min(_MOST_PROGRAMS, quotient_up(size["T"], 2)), inputs - 1, 1
