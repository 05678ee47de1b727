"""What an entry of the library is made of: kernels called on operands, phase by phase."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from graphwright.backends.tvm.kernels.kernel import Kernel

__all__ = ["PARAMETERS", "Operand", "Phase", "RowCount"]

# The pointers of an entry in order, by what they point to; `threads: int32` follows them.
PARAMETERS = {
    "batch": "int32",  # [8]: tokens T, sequences B, block-table stride M, sampled rows R, zeros
    "tokens": "int64",  # [T]
    "positions": "int64",  # [T]
    "query_start": "int32",  # [B + 1]
    "block_table": "int32",  # [B * M]
    "sample_rows": "int32",  # [R]
    "logits": "float32",  # [R * vocabulary]
    "arena": "uint8",
    "weights": "uint8",
    "kv": "uint8",
}

RowCount = Literal["T", "R"]


@dataclass(frozen=True)
class Operand:
    """`offset` bytes behind an entry's `parameter`; in `weights`, behind the blob `blob`."""

    parameter: str
    offset: int = 0
    blob: str | None = None

    def __post_init__(self) -> None:
        assert self.parameter in PARAMETERS, self.parameter
        assert (self.blob is not None) == (self.parameter == "weights")


@dataclass(frozen=True)
class Phase:
    """All threads call `kernel` on `operands`, one a pointer, for T or R rows, then meet."""

    step: str
    kernel: Kernel
    operands: tuple[Operand, ...]
    rows: RowCount
