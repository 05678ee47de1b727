"""append_kv and attention of the TVM backend against gw.cached_attention."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from graphwright.backends.tvm.kernels.append_kv import append_kv
from graphwright.backends.tvm.kernels.attention import attention
from graphwright.backends.tvm.kernels.standalone import assembly, standalone
from graphwright.backends.tvm.target import Cpu, cpu_by_name, host_cpu
from graphwright.ir.masks import Mask
from graphwright.ir.op import get_op
from graphwright.ir.tolerance import check_close

CPU = host_cpu()
BLOCK = 16


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
    cpu: Cpu = field(default_factory=lambda: CPU)

    def __post_init__(self) -> None:
        torch.manual_seed(len(self.batch) + self.dim)
        self.tokens = sum(new for _, new in self.batch)
        self.positions = torch.cat([torch.arange(old, old + new) for old, new in self.batch])
        self.start = torch.tensor([0, *(new for _, new in self.batch)]).cumsum(0).int()
        needed = [-(-(old + new) // BLOCK) for old, new in self.batch]
        width, blocks = max(needed) + 1, sum(needed) + 2
        order = iter(torch.randperm(blocks - 1).tolist())
        self.table = torch.full((len(self.batch), width), blocks - 1, dtype=torch.int32)
        for row, count in zip(self.table, needed, strict=True):
            row[:count] = torch.tensor([next(order) for _ in range(count)], dtype=torch.int32)
        self.caches = (
            torch.randn(blocks, BLOCK, self.kv_heads, self.dim),
            torch.randn(blocks, BLOCK, self.kv_heads, self.value_dim),
        )
        self.q = torch.randn(self.tokens, self.heads, self.dim)
        self.k = torch.randn(self.tokens, self.kv_heads, self.dim)
        self.v = torch.randn(self.tokens, self.kv_heads, self.value_dim)
        self.extras = (
            torch.rand(self.heads) if self.slopes else None,
            torch.randn(self.heads) if self.sinks else None,
        )

    def reference(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        k_cache, v_cache = (cache.clone() for cache in self.caches)
        out = get_op("cached_attention").reference(
            self.q, self.k, self.v, k_cache, v_cache, self.positions, self.start, self.table,
            *self.extras, scale=self.dim**-0.5, mask=self.mask, softcap=self.softcap,
        )  # fmt: skip
        return out, k_cache, v_cache


def physical(case: Case) -> tuple[np.ndarray, int, int]:
    """The pool as one memory, its block stride, and where V starts; unwritten slots are NaN."""
    k, v = (cache.clone() for cache in case.caches)
    written = torch.zeros(k.shape[:2], dtype=torch.bool)
    for row, (old, _) in zip(case.table.long(), case.batch, strict=True):
        past = torch.arange(old)
        written[row[past // BLOCK], past % BLOCK] = True
    k[~written] = float("nan")
    v[~written] = float("nan")
    blocks = len(k)
    keys = k.permute(0, 2, 3, 1).reshape(blocks, -1)
    values = v.permute(0, 2, 1, 3).reshape(blocks, -1)
    gap = torch.full((blocks, 48), float("nan"))
    pool = torch.cat([keys, values, gap], dim=1).contiguous().numpy()
    return pool, pool.shape[1], keys.shape[1]


def aligned_copy(x: np.ndarray) -> np.ndarray:
    """On 64 bytes, so that `standalone` uses it, and parts of it, in place."""
    memory = np.empty(x.nbytes + 64, np.uint8)
    copy = memory[-memory.ctypes.data % 64 :][: x.nbytes].view(x.dtype)
    copy[:] = x
    return copy


def rows_with_gap(x: torch.Tensor, gap: int) -> np.ndarray:
    flat = x.reshape(len(x), -1)
    filler = torch.full((len(x), gap), float("nan"))
    return torch.cat([flat, filler], dim=1).contiguous().numpy()


def logical(case: Case, pool: np.ndarray, split: int) -> tuple[torch.Tensor, torch.Tensor]:
    blocks, used = len(pool), split + case.kv_heads * case.value_dim * BLOCK
    keys = torch.from_numpy(pool[:, :split]).reshape(blocks, case.kv_heads, case.dim, BLOCK)
    values = torch.from_numpy(pool[:, split:used])
    values = values.reshape(blocks, case.kv_heads, BLOCK, case.value_dim)
    return keys.permute(0, 3, 1, 2), values.permute(0, 2, 1, 3)


def check(case: Case) -> None:
    want, k_cache, v_cache = case.reference()
    gap = case.padding
    pool, block_stride, split = physical(case)
    shape = (case.kv_heads, case.dim, case.value_dim)
    append = append_kv(
        *shape,
        k_stride=case.kv_heads * case.dim + gap,
        v_stride=case.kv_heads * case.value_dim + gap,
        block_stride=block_stride,
        cpu=case.cpu,
    )
    attend = attention(
        case.heads, *shape, q_stride=case.heads * case.dim + gap, block_stride=block_stride,
        scale=case.dim**-0.5, mask=Mask.parse(case.mask), softcap=case.softcap, slopes=case.slopes,
        sinks=case.sinks, cpu=case.cpu,
    )  # fmt: skip
    flat = pool.reshape(-1)
    index = ["int64", "int32", "int32"]
    write = standalone(append, ["int32", *["float32"] * 4, *index], case.cpu)
    extras = [each.numpy() for each in case.extras if each is not None]
    dtypes = ["int32", *["float32"] * 3, *index, *["float32"] * (len(extras) + 1)]
    run = standalone(attend, dtypes, case.cpu)
    batch = np.array([case.tokens, len(case.batch), case.table.shape[1], 0, 0, 0, 0, 0], np.int32)
    where = [case.positions.numpy(), case.start.numpy(), case.table.numpy()]
    k, v, q = (rows_with_gap(each, gap) for each in (case.k, case.v, case.q))
    for threads in (1, 2, 3):
        memory = aligned_copy(flat)
        values = memory[split:]
        write(case.tokens, threads, batch, k, v, memory, values, *where)
        got_k, got_v = logical(case, memory.reshape(pool.shape), split)
        for row, (old, new) in zip(case.table.long(), case.batch, strict=True):
            there = torch.arange(old + new)
            at = (row[there // BLOCK], there % BLOCK)
            assert torch.equal(got_k[at], k_cache[at]) and torch.equal(got_v[at], v_cache[at])
        out = np.full(want.numel() + 32, -7.0, np.float32)
        run(case.tokens, threads, batch, q, memory, values, *where, *extras, out)
        assert (out[want.numel() :] == -7.0).all()
        check_close(torch.from_numpy(out[: want.numel()]).reshape(want.shape), want)


RAGGED = [(9, 1), (0, 5), (37, 3), (100, 1)]


@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim", "value_dim"),
    [(8, 2, 16, 16), (4, 4, 64, 64), (32, 4, 8, 8), (6, 1, 24, 7), (5, 5, 5, 33), (28, 4, 16, 16),
     (11, 1, 8, 16), (64, 4, 8, 8), (3, 1, 192, 128)],
)  # fmt: skip
def test_shapes(heads: int, kv_heads: int, dim: int, value_dim: int) -> None:
    check(Case(heads, kv_heads, dim, value_dim, RAGGED, padding=3))


@pytest.mark.parametrize(
    "mask",
    [
        "causal & window(3)",
        "causal & window(40)",
        "causal & chunk(4)",
        "causal & chunk(24)",
        "causal & (window(17) | first(1))",
        "causal & (window(5) | first(20))",
        "causal & window(20) & chunk(32)",
    ],
)
def test_masks(mask: str) -> None:
    check(Case(4, 2, 16, 16, [*RAGGED, (3, 70)], mask=mask))


def test_slopes_sinks_and_softcap() -> None:
    check(Case(4, 2, 16, 16, RAGGED, slopes=True))
    check(Case(4, 2, 16, 16, RAGGED, sinks=True))
    check(Case(6, 2, 8, 8, RAGGED, slopes=True, sinks=True, mask="causal & window(12)"))
    check(Case(4, 2, 16, 16, RAGGED, softcap=2.0))


@pytest.mark.parametrize("batch", [[(0, 1)], [(0, 70)], [(700, 1)], [(650, 33)], [(15, 1), (16, 1)],
                                   [(1, 1)] * 8, [(0, 31), (5, 1), (64, 32), (2, 9)]])  # fmt: skip
def test_batches(batch: list[tuple[int, int]]) -> None:
    check(Case(4, 2, 16, 16, batch))
    check(Case(2, 2, 8, 8, batch))


def test_empty_sequences_are_skipped() -> None:
    check(Case(4, 2, 16, 16, [(3, 0), (9, 1), (4, 0), (4, 0), (0, 5), (7, 0)]))


def test_other_vector_width() -> None:
    if CPU.name == "aarch64":
        pytest.skip("this machine is no x86-64")
    for heads, kv_heads in ((8, 2), (3, 3)):
        check(Case(heads, kv_heads, 20, 20, RAGGED, cpu=cpu_by_name("x86-64-v3")))


def test_scores_far_apart_stay_finite() -> None:
    case = Case(2, 2, 16, 16, [(60, 9)])
    case.q *= 200
    check(case)


def test_nothing_is_allocated_on_the_heap() -> None:
    kernel = attention(
        64,
        8,
        128,
        256,
        q_stride=8192,
        block_stride=2**16,
        scale=0.1,
        mask=Mask(window=40, first=4),
        softcap=3.0,
        slopes=True,
        sinks=True,
        cpu=CPU,
    )
    index = ["int64", "int32", "int32"]
    text = assembly(kernel, ["int32", *["float32"] * 3, *index, *["float32"] * 3], CPU)
    assert "AllocWorkspace" not in text
