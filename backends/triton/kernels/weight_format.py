"""How weights lie in memory for the kernels of matrix products.

Dense and w8 weights stay [N, K], a row's inputs side by side. w4 weights are bytes [N, K' / 2]: K'
is K padded to whole chunks of 128 inputs, 64 bytes, which are 16 words of 32 bits (little-endian).
Nibble p of a word is an input of the chunk's p-th run of 16: with the word's number in bits t t w
v, input 16 p + 8 w + 2 t + v. So a thread that loads four words at once, 16 bytes, has of each run
what m16n8k16's left operand takes from lane t of four (PTX ISA, "Matrix fragments for
mma.m16n8k16"), a run has one scale, and runs are in the order in which activations lie.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch

from graphwright.ir.schemes import Scheme

__all__ = ["CHUNK", "WeightFormat", "WeightKind", "pack_nibbles"]

CHUNK = 128  # inputs of a row of w4 weights that lie together

WeightKind: TypeAlias = Literal["dense", "w8", "w4"]


@dataclass(frozen=True)
class WeightFormat:
    """kind: what a weight [N, K] is made of; dtype: its elements'; group: inputs for one scale
    (0: one for each output); zero: are there zero points?

    Operands: weight; for integers scale [N, K / group] or [N] (float32 for w8, float16 for w4);
    zero uint8 [N, K / group].
    """

    kind: WeightKind
    dtype: str
    group: int = 0
    zero: bool = False

    @staticmethod
    def dense(dtype: str) -> WeightFormat:
        """Floats of type `dtype`."""
        return WeightFormat("dense", dtype)

    @staticmethod
    def of(scheme: str) -> WeightFormat:
        """That of an integer scheme of graphwright.ir.schemes."""
        parsed = Scheme.parse(scheme)
        if parsed.bits == 8:
            return WeightFormat("w8", "int8", parsed.group or 0)
        return WeightFormat("w4", "uint8", parsed.group or 0, parsed.zero)

    def row_bytes(self, k: int) -> int:
        """Elements that a row of k inputs takes."""
        return -(-k // CHUNK) * (CHUNK // 2) if self.kind == "w4" else k

    def pointers(self) -> dict[str, str | None]:
        """weight, scale and zero: name to element type, None for an absent one."""
        scale = {"dense": None, "w8": "float32", "w4": "float16"}[self.kind]
        return {"weight": self.dtype, "scale": scale, "zero": "uint8" if self.zero else None}

    def constants(self, k: int) -> dict[str, Any]:
        """What the kernels' tiles of products take."""
        groups = k // self.group if self.group else 1
        assert not self.group or k % self.group == 0, (k, self)
        return {
            "K": k, "KIND": self.kind, "GROUP": self.group, "GROUPS": groups,
            "ROW": self.row_bytes(k),
        }  # fmt: skip


def pack_nibbles(values: torch.Tensor, scheme: str) -> torch.Tensor:
    """int8 values [..., N, K] of a w4 scheme -> uint8 [..., N, K' / 2] as described above.

    Symmetric values -8..7 are stored plus 8; padding inputs are stored as their zero would be.
    """
    format = WeightFormat.of(scheme)
    assert format.kind == "w4"
    k = values.shape[-1]
    nibbles = values.to(torch.int16) + (0 if format.zero else 8)
    padding = 2 * format.row_bytes(k) - k
    nibbles = torch.nn.functional.pad(nibbles, (0, padding), value=0 if format.zero else 8)
    assert int(nibbles.min()) >= 0 and int(nibbles.max()) <= 15
    runs = nibbles.reshape(-1, 4, 2, 2, 4, 2)  # byte, its half, w, t, v
    words = runs.permute(0, 4, 3, 5, 1, 2)
    packed = words[..., 0] | (words[..., 1] << 4)
    return packed.to(torch.uint8).reshape(*values.shape[:-1], -1)
