"""Ragged batches over a paged cache as the CPU's kernels see it, for tests of attention."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from graphwright.backends.tvm.kernels.kv_values import BLOCK_SIZE, KvBlock
from graphwright.backends.tvm.kv_layout import KvLayout
from graphwright.backends.tvm.target import Cpu, host_cpu
from graphwright.ir.masks import Mask
from graphwright.ir.op import get_op
from graphwright.ir.ops.choose_keys import choose
from graphwright.ir.states import KVState

__all__ = ["CPU", "DTYPES", "RAGGED", "Case", "rows_with_gap"]

CPU = host_cpu()
RAGGED = [(9, 1), (0, 5), (37, 3), (100, 1)]
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16,
          "int8": torch.int8}  # fmt: skip


@dataclass
class Case:
    """A ragged batch: per sequence (cached tokens, new tokens)."""

    heads: int
    kv_heads: int
    dim: int
    value_dim: int
    batch: list[tuple[int, int]]
    mask: str = "causal"
    softcap: float = 0.0
    slopes: bool = False
    sinks: bool = False
    padding: int = 0
    dtype: str = "float32"
    split: bool = False
    count: int = 0  # of the keys that each token chooses; 0: it attends to all
    cpu: Cpu = field(default_factory=lambda: CPU)

    def __post_init__(self) -> None:
        torch.manual_seed(len(self.batch) + self.dim)
        self.tokens = sum(new for _, new in self.batch)
        self.positions = torch.cat([torch.arange(old, old + new) for old, new in self.batch])
        self.start = torch.tensor([0, *(new for _, new in self.batch)]).cumsum(0).int()
        needed = [-(-(old + new) // BLOCK_SIZE) for old, new in self.batch]
        width, blocks = max(needed) + 1, sum(needed) + 2
        order = iter(torch.randperm(blocks - 1).tolist())
        self.table = torch.full((len(self.batch), width), blocks - 1, dtype=torch.int32)
        for row, count in zip(self.table, needed, strict=True):
            row[:count] = torch.tensor([next(order) for _ in range(count)], dtype=torch.int32)
        state = KVState("kv0", self.kv_heads, self.dim, self.value_dim, DTYPES[self.dtype],
                        Mask.parse(self.mask), chosen=self.count)  # fmt: skip
        self.layout = KvLayout.of([state])
        self.names = state.inputs
        sizes = zip(state.shapes(blocks, BLOCK_SIZE), state.dtypes, strict=True)
        self.caches = [_random(shape, dtype) for shape, dtype in sizes]
        self.q = torch.randn(self.tokens, self.heads, self.dim)
        self.k = torch.randn(self.tokens, self.kv_heads, self.dim)
        self.v = torch.randn(self.tokens, self.kv_heads, self.value_dim)
        self.extras = (
            torch.rand(self.heads) if self.slopes else None,
            torch.randn(self.heads) if self.sinks else None,
        )
        self.block = KvBlock(
            self.kv_heads, self.dim, self.value_dim, self.layout.block_bytes[0] + 64, self.dtype,
            bool(self.count),
        )  # fmt: skip
        self.chosen = self._choose() if self.count else None

    def reference(self) -> tuple[torch.Tensor, list[torch.Tensor]]:
        caches = [cache.clone() for cache in self.caches]
        out = get_op("cached_attention").reference(
            self.q, self.k, self.v, *caches[:2], self.positions, self.start, self.table,
            *self.extras, *(caches[2:] or (None, None)), self.chosen, scale=self.dim**-0.5,
            mask=self.mask, softcap=self.softcap,
        )  # fmt: skip
        return out, caches

    def _choose(self) -> torch.Tensor:
        """For each token some of the positions that it sees, as gw.choose_keys returns them."""
        longest = int(self.positions.max()) + 1
        scores = torch.rand(self.tokens, longest)
        past = torch.arange(longest)
        visible = Mask.parse(self.mask).visible(self.positions[:, None], past[None, :])
        return choose(scores, visible, self.count)

    def parts(self, memory: np.ndarray) -> list[torch.Tensor]:
        """The state's tensors as they lie in blocks of memory: axes of the position, the head and
        the channel, some of them cut into pairs."""
        found = []
        pool = torch.from_numpy(memory).reshape(len(self.caches[0]), -1)
        blocks, heads, half = len(pool), self.kv_heads, BLOCK_SIZE // 2
        for name, cache in zip(self.names, self.caches, strict=True):
            keys, pairs = name.endswith("_k"), cache.dtype is torch.int8 and not self.count
            padding = cache.shape[3] % 2 * BLOCK_SIZE * heads if keys and pairs else 0
            first, size = self.layout.offsets[name], cache[0].nbytes + padding
            part = pool[:, first : first + size].view(cache.dtype)
            if name.endswith("scale"):
                found.append(part.view(blocks, heads, BLOCK_SIZE).permute(0, 2, 1))
            elif pairs and keys:
                found.append(part.view(blocks, heads, -1, BLOCK_SIZE, 2).permute(0, 3, 1, 2, 4))
            elif pairs:
                found.append(part.view(blocks, heads, half, -1, 2).permute(0, 2, 4, 1, 3))
            elif keys and not self.count:
                found.append(part.view(blocks, heads, -1, BLOCK_SIZE).permute(0, 3, 1, 2))
            else:
                found.append(part.view(blocks, heads, BLOCK_SIZE, -1).permute(0, 2, 1, 3))
        return found

    def read(self, memory: np.ndarray) -> list[torch.Tensor]:
        """Copies of the state's tensors in their logical order of axes; a channel that only fills a
        pair comes last."""
        found = []
        for part, cache in zip(self.parts(memory), self.caches, strict=True):
            found.append(part.reshape(*cache.shape[:3], *[-1] * (cache.ndim == 4)))
        return found

    def where(self, counts: list[int]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Block and place of the first positions of each sequence."""
        places = []
        for row, count in zip(self.table.long(), counts, strict=True):
            there = torch.arange(count)
            places.append((row[there // BLOCK_SIZE], there % BLOCK_SIZE))
        return places

    def memory(self) -> np.ndarray:
        """The pool as one memory on 64 bytes; what nobody has written is NaN."""
        size = len(self.caches[0]) * self.block.block_bytes
        memory = np.empty(size + 64, np.uint8)
        memory = memory[-memory.ctypes.data % 64 :][:size]
        memory[:] = 0xFF
        for part, logical, cache in zip(
            self.parts(memory), self.read(memory), self.caches, strict=True
        ):
            for place in self.where([old for old, _ in self.batch]):
                logical[..., : cache.shape[-1]][place] = cache[place]
            part.copy_(logical.reshape(part.shape))
        return memory


def _random(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    if dtype is torch.int8:
        return torch.randint(-127, 128, shape, dtype=dtype)
    if len(shape) == 3:  # scales
        return torch.rand(shape) * 0.03
    return torch.randn(shape).to(dtype)


def rows_with_gap(x: torch.Tensor, gap: int) -> np.ndarray:
    flat = x.reshape(len(x), -1)
    filler = torch.full((len(x), gap), float("nan"))
    return torch.cat([flat, filler], dim=1).contiguous().numpy()
