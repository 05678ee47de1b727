"""What an entry of the library is made of: kernels called on operands, phase by phase.

In steps of few tokens small phases are *replicated*: every thread computes all of the result for
itself, in memory of its own, and nobody waits. `meetings.py` says where threads still must.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import chain

from graphwright.backends.rows import ADAPTER_INPUTS, INPUTS, MOST_POOLS, RowCount, in_pool
from graphwright.backends.tvm.kernels.kernel import Kernel

__all__ = ["ALONE_ROWS", "PARAMETERS", "POOL_PARTS", "Operand", "Phase", "parameters_of",
           "parts_of"]  # fmt: skip

PART_BYTES = 64 << 10  # of weights in a part of a phase, at least
ALONE_ROWS = 2  # tokens of a step up to which replicated phases are computed by every thread

# The pointers of an entry in order, by what they point to; `threads: int32` follows them.
PARAMETERS = {
    **INPUTS,
    "logits": "float32",  # [R * vocabulary]
    "arena": "uint8",
    "weights": "uint8",
    "kv": "uint8",
}
# Behind each, its parts for further pools: an entry finds them by the batch header.
POOL_PARTS = {
    name: tuple(in_pool(name, pool) for pool in range(1, MOST_POOLS))
    for name in ("block_table", "kv")
}


def parameters_of(adapters: bool) -> dict[str, str]:
    """PARAMETERS, and behind them those of a program with adapters."""
    return {**PARAMETERS, **ADAPTER_INPUTS} if adapters else PARAMETERS


@dataclass(frozen=True)
class Operand:
    """`offset` bytes behind an entry's `parameter`, or behind the part of it that is one of
    POOL_PARTS; in `weights`, behind the blob `blob`.

    buffer: the planned buffer it lies in, in `arena`. written: the kernel writes there.
    """

    parameter: str
    offset: int = 0
    blob: str | None = None
    buffer: str | None = None
    written: bool = False

    def __post_init__(self) -> None:
        known = {*PARAMETERS, *ADAPTER_INPUTS, *chain(*POOL_PARTS.values())}
        assert self.parameter in known, self.parameter
        assert (self.blob is not None) == (self.parameter == "weights")
        assert (self.buffer is not None) == (self.parameter == "arena")

    def read(self) -> Operand:
        """The same place, which this kernel only reads."""
        return replace(self, written=False)


@dataclass(frozen=True)
class Phase:
    """All threads call `kernel` on `operands`, one a pointer, for T or R rows, then meet.

    replicated: its cost is small for a row, so that in steps of at most ALONE_ROWS tokens each
    thread may do all of it. It must write nothing but buffers of the arena.

    parts: into how many parts it may be cut, for threads that are done early to take what others
    have not begun. Such a kernel is called once for each part, as if by that many threads.

    stream: bytes of its first weight, if each thread reads an equal share of it, from front to
    back; a thread that waits in a small step reads ahead there. 0: it has none.

    adapters: it has nothing to do where no token of a step has an adapter, and is left out then.
    """

    step: str
    kernel: Kernel
    operands: tuple[Operand, ...]
    rows: RowCount
    replicated: bool = False
    parts: int = 1
    stream: int = 0
    adapters: bool = False


def parts_of(weight_bytes: int) -> int:
    """Into how many parts the product by a weight may be cut: what follows is a new start for the
    hardware's prefetches and a call, so that a part must not be small."""
    return max(1, weight_bytes // PART_BYTES)
