"""Which sequence each token of a step belongs to, and its place in the paged cache.

Every layer needs both; they are found once a step. One program looks at 128 tokens and counts, for
each, the sequences that begin at or before it: for B <= 256 sequences that is less work than the
chain of dependent loads of a binary search.
"""

from __future__ import annotations

import triton
import triton.language as tl

from graphwright.backends.triton.kernels.kernel import PITCH, TritonKernel, define
from graphwright.backends.triton.kernels.sizes import quotient_up

__all__ = ["token_slots"]

_TOKENS = 128
_SEQUENCES = 32


@triton.jit
def token_slots_kernel(
    batch, positions, query_start, block_table, sequences, slots,
    BLOCK_SIZE: tl.constexpr, TOKENS: tl.constexpr, SEQUENCES: tl.constexpr,
    POOLS: tl.constexpr, MOST: tl.constexpr, PITCH: tl.constexpr,
):  # fmt: skip
    tokens, count, width = tl.load(batch), tl.load(batch + 1), tl.load(batch + 2)
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    inside = token < tokens
    sequence = tl.zeros((TOKENS,), tl.int32)
    for first in range(0, count, SEQUENCES):
        each = first + 1 + tl.arange(0, SEQUENCES)
        begin = tl.load(query_start + each, mask=each < count, other=0x7FFFFFFF)
        sequence += tl.sum((begin[None, :] <= token[:, None]).to(tl.int32), axis=1)
    position = tl.load(positions + token, mask=inside, other=0).to(tl.int32)
    if POOLS > 1:
        block_table += tl.program_id(1) * tl.load(batch + PITCH)
        slots += tl.program_id(1) * MOST
    entry = sequence * width + position // BLOCK_SIZE
    block = tl.load(block_table + entry, mask=inside, other=0)
    tl.store(sequences + token, sequence, mask=inside)
    tl.store(slots + token, block * BLOCK_SIZE + position % BLOCK_SIZE, mask=inside)


def token_slots(*, block_size: int = 16, pools: int = 1, most: int = 0) -> TritonKernel:
    """Pointers: batch, positions int64 [T], query_start int32 [B+1], block_table int32 [B, M] of
    each pool, sequences int32 [T], slots int32 [T]; of the next pool `most` numbers behind that.

    slots[t] = block * block_size + place in it: where position positions[t] of the token's sequence
    lies. Run it once at the start of a step.
    """
    given = {"batch": "int32", "positions": "int64", "query_start": "int32"}
    given |= {"block_table": "int32", "sequences": "int32", "slots": "int32"}
    return define(
        "token_slots",
        token_slots_kernel,
        given,
        {
            "BLOCK_SIZE": block_size, "TOKENS": _TOKENS, "SEQUENCES": _SEQUENCES,
            "POOLS": pools, "MOST": most if pools > 1 else 0, "PITCH": PITCH,
        },
        grid=lambda size: (quotient_up(size["T"], _TOKENS), pools, 1),
        num_warps=4,
    )  # fmt: skip
