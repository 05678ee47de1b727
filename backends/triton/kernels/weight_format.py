"""How weights lie in memory for the kernels of matrix products.

Dense and w8 weights stay [N, K], a row's inputs side by side. w4 weights are bytes [N' / 8,
K' / 128, 8, 64]: N' is N padded to whole octets of rows, K' is K padded to whole chunks of 128
inputs. A chunk of a row is 64 bytes, and those of an octet lie side by side: what a warp copies at
once, 8 rows by 4 threads by 16 bytes, are 512 bytes in a row. Of experts [E, N, K] each is padded.

A chunk is 16 words of 32 bits (little-endian). With a word's number in bits t t w h and a nibble's
number in it in bits v i i, the nibble is input 16 (i + 4 h) + 8 w + 2 t + v. So a thread that loads
four words at once, 16 bytes, has of each run of 16 inputs what m16n8k16's left operand takes from
lane t of four (PTX ISA, "Matrix fragments for mma.m16n8k16"), two pairs of neighbours, each in the
two halves of a word. A run has one scale, and runs are in the order in which activations lie.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch

from graphwright.ir.schemes import Scheme

__all__ = ["CHUNK", "OCTET", "WeightFormat", "WeightKind", "pack_nibbles"]

CHUNK = 128  # inputs of a row of w4 weights that lie together
OCTET = 8  # rows of w4 weights whose chunks lie side by side

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

    def weight_bytes(self, n: int, k: int) -> int:
        """Elements that n rows of k inputs take."""
        return (-(-n // OCTET) * OCTET if self.kind == "w4" else n) * self.row_bytes(k)

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
    """int8 values [..., N, K] of a w4 scheme -> uint8 [..., N' / 8, K' / 128, 8, 64] as above.

    Symmetric values -8..7 are stored plus 8; padding is stored as its zero would be.
    """
    format = WeightFormat.of(scheme)
    assert format.kind == "w4"
    n, k = values.shape[-2:]
    nibbles = values.to(torch.int16) + (0 if format.zero else 8)
    padding = (0, -k % CHUNK, 0, -n % OCTET)
    nibbles = torch.nn.functional.pad(nibbles, padding, value=0 if format.zero else 8)
    assert int(nibbles.min()) >= 0 and int(nibbles.max()) <= 15
    chunks = nibbles.reshape(-1, OCTET, nibbles.shape[-1] // CHUNK, CHUNK).transpose(1, 2)
    inputs = chunks.reshape(-1, 2, 2, 2, 2, 4, 2)  # h, upper and lower bit of i, w, t, v
    words = inputs.permute(0, 5, 4, 1, 6, 2, 3)
    packed = words[..., 0] | (words[..., 1] << 4)
    return packed.to(torch.uint8).reshape(*values.shape[:-2], -1, chunks.shape[1], OCTET, 64)
