"""What an entry is made of: kernels launched on operands, one after the other."""

from __future__ import annotations

from dataclasses import dataclass

from graphwright.backends.rows import MOST_POOLS, in_pool
from graphwright.backends.triton.kernels.kernel import TritonKernel
from graphwright.backends.triton.kernels.take_inputs import GIVEN, given_to
from graphwright.ir.errors import BackendError

__all__ = ["GIVEN", "PARAMETERS", "Launch", "Operand"]

# The regions of memory that kernels work on, by the element type at their start; they lie where the
# runtime puts them: host_… and the last in pinned memory of the host, the others in the GPU's.
PARAMETERS = {
    **{f"host_{name}": dtype for name, dtype in given_to(adapters=True).items()},
    **given_to(adapters=True),
    "logits": "float32",  # [R * vocabulary]
    "arena": "uint8",
    "weights": "uint8",
    "kv": "uint8",
    "counters": "int32",  # zeros between launches
    "chosen": "int32",  # [R]: as `largest`, for the step behind
    "largest": "int32",  # [R]: the token of the largest logit of each row, or one that was drawn
}
# Those of further pools lie in the regions of the first, where the batch header says.
PARAMETERS |= {
    in_pool(name, pool): PARAMETERS[name]
    for pool in range(1, MOST_POOLS)
    for name in ("block_table", "kv")
}


@dataclass(frozen=True)
class Operand:
    """`offset` bytes behind the start of region `parameter`; in `weights`, of the blob `blob`; in
    `kv`, behind block 0, in front of which the slots of recurrent states lie.

    dtype: the element type of a value of the program that lies there, None for anything else.
    """

    parameter: str
    offset: int = 0
    blob: str | None = None
    dtype: str | None = None

    def __post_init__(self) -> None:
        assert self.parameter in PARAMETERS, self.parameter
        assert (self.blob is not None) == (self.parameter == "weights")


@dataclass(frozen=True)
class Launch:
    """`kernel` on `operands`, one a pointer of it, for the step `step` of the program."""

    step: str
    kernel: TritonKernel
    operands: tuple[Operand, ...]

    def __post_init__(self) -> None:
        expected = len(self.kernel.pointers)
        assert len(self.operands) == expected, (
            f"{self.step}: {len(self.operands)} operands for {self.kernel.pointers}"
        )
        for (name, dtype), operand in zip(self.kernel.pointers, self.operands, strict=True):
            if operand.dtype not in (None, dtype):
                raise BackendError(
                    f"'{self.kernel.name}' takes '{name}' as {dtype}, and step '{self.step}' gives "
                    f"it {operand.dtype}."
                )
