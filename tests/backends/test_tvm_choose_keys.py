"""append_keys, choose_keys and choose_combine of the TVM backend against gw.cached_choose_keys.

Most queries, keys and weights are small integers, so that every score is exact and many are equal:
then the chosen positions must be the same, ties and all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
import pytest
import torch
from attention_cases import CPU, DTYPES
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import fx

import graphwright.backends.tvm.lower  # noqa: F401  (registers the lowerings)
from graphwright.backends.tvm.context import LoweringContext
from graphwright.backends.tvm.kernels.append_kv import append_keys
from graphwright.backends.tvm.kernels.choose_keys import choose_combine, choose_keys
from graphwright.backends.tvm.kernels.kv_values import BLOCK_SIZE
from graphwright.backends.tvm.kernels.standalone import aligned, assembly, standalone
from graphwright.backends.tvm.kv_layout import KvLayout
from graphwright.backends.tvm.registry import lowerings_of
from graphwright.backends.tvm.target import Cpu, cpu_by_name
from graphwright.ir.masks import Mask
from graphwright.ir.memory import ATTENTION_SEGMENTS, candidate_words, scratch
from graphwright.ir.op import get_op
from graphwright.ir.states import IndexState, KVState

RAGGED = [(9, 1), (0, 5), (37, 3), (100, 1)]


@dataclass
class Case:
    """A ragged batch: per sequence (cached tokens, new tokens). largest: of the integers."""

    heads: int
    kv_heads: int
    dim: int
    count: int
    batch: list[tuple[int, int]]
    mask: str = "causal"
    dtype: str = "float32"
    split: bool = False
    largest: int = 2
    cpu: Cpu = CPU

    def __post_init__(self) -> None:
        torch.manual_seed(self.dim + self.count)
        self.tokens = sum(new for _, new in self.batch)
        self.positions = torch.cat([torch.arange(old, old + new) for old, new in self.batch])
        self.start = torch.tensor([0, *(new for _, new in self.batch)]).cumsum(0).int()
        needed = [-(-(old + new) // BLOCK_SIZE) for old, new in self.batch]
        order = torch.randperm(sum(needed)).int().split(needed)
        self.table = torch.nn.utils.rnn.pad_sequence(list(order), batch_first=True).int()
        mask = Mask.parse(self.mask)
        # another state in front, so that the index keys do not start at a block's first byte
        other = KVState("kv0", 1, 8, 8, torch.float32, mask, chosen=4)
        state = IndexState("index1", self.kv_heads, self.dim, DTYPES[self.dtype], mask)
        self.layout = KvLayout.of([other, state])
        self.cache = self.numbers(sum(needed), BLOCK_SIZE, self.kv_heads, self.dim)
        self.cache = self.cache.to(state.dtype)
        self.q = self.numbers(self.tokens, self.heads, self.dim)
        self.k = self.numbers(self.tokens, self.kv_heads, self.dim)
        self.weights = self.numbers(self.tokens, self.heads)

    def numbers(self, *shape: int) -> torch.Tensor:
        return torch.randint(-self.largest, self.largest + 1, shape).float()

    def keys(self, memory: np.ndarray) -> torch.Tensor:
        """The index keys in blocks of memory, in the order of axes of the cache."""
        first, size = self.layout.offsets["index1"], self.cache[0].nbytes
        pool = torch.from_numpy(memory).reshape(len(self.cache), -1)[:, first : first + size]
        part = pool.view(self.cache.dtype).view(len(self.cache), self.kv_heads, -1, BLOCK_SIZE)
        return part.permute(0, 3, 1, 2)


def check(case: Case) -> torch.Tensor:
    cache = case.cache.clone()
    want: torch.Tensor = get_op("cached_choose_keys").reference(
        case.q, case.k, case.weights, cache, case.positions, case.start, case.table,
        count=case.count, mask=case.mask,
    )  # fmt: skip
    block, mask = case.layout.index_block_of("index1"), Mask.parse(case.mask)
    strides = {"q_stride": case.heads * case.dim + 3, "w_stride": case.heads + 2}
    append = append_keys(block, k_stride=case.kv_heads * case.dim + 1, cpu=case.cpu)
    kernel = choose_keys(
        case.heads, block, case.count, mask=mask, split=case.split, cpu=case.cpu, **strides
    )
    combine = choose_combine(case.heads, block, case.count, mask=mask, cpu=case.cpu)
    kind, index = block.pointers[0][1], ["int64", "int32", "int32"]
    write = standalone(append, ["int32", "float32", kind, *index], case.cpu)
    choose = standalone(kernel, ["int32", *["float32"] * 2, kind, *index, "int32"], case.cpu)
    put_together = standalone(combine, ["int32", "int64", *["int32"] * 3], case.cpu)
    batch = np.array([case.tokens, len(case.batch), case.table.shape[1], 0, 0, 0, 0, 0], np.int32)
    paging = case.positions.numpy(), case.start.numpy(), case.table.numpy()
    k, q, weights = (
        np.pad(each.reshape(case.tokens, -1).numpy(), ((0, 0), (0, gap)), constant_values=np.nan)
        for each, gap in ((case.k, 1), (case.q, 3), (case.weights, 2))
    )
    for threads in (1, 2, 3, ATTENTION_SEGMENTS):
        memory = aligned(np.full(len(case.cache) * case.layout.block_bytes[0], 0xFF, np.uint8))
        case.keys(memory).copy_(case.cache)
        held = memory[case.layout.offsets["index1"] :].view(kind)
        write(case.tokens, threads, batch, k, held, *paging)
        assert torch.equal(case.keys(memory), cache)
        out = np.full(want.numel() + 16, -7, np.int32)
        words = case.tokens * ATTENTION_SEGMENTS * candidate_words(case.count)
        partial = aligned(np.full(words + 16, -9, np.int32))
        choose(
            case.tokens, threads, batch, q, weights, held, *paging, partial if case.split else out
        )
        if case.split:
            put_together(case.tokens, threads, batch, *paging[:2], partial, out)
            assert (partial[words:] == -9).all()
        assert (out[want.numel() :] == -7).all()
        assert torch.equal(torch.from_numpy(out[: want.numel()]).reshape(want.shape), want)
    return want


@pytest.mark.parametrize(("heads", "kv_heads", "dim", "count"),
                         [(16, 1, 16, 8), (4, 2, 5, 1), (3, 3, 33, 20), (64, 1, 8, 64),
                          (1, 1, 1, 3)])  # fmt: skip
@pytest.mark.parametrize("split", [False, True])
def test_shapes(heads: int, kv_heads: int, dim: int, count: int, split: bool) -> None:
    check(Case(heads, kv_heads, dim, count, [*RAGGED, (250, 2)], split=split))


def test_candidates_go_and_come_again_in_a_long_sequence() -> None:
    for split in (False, True):
        batch = [(3000, 2), (700, 1), (255, 1), (256, 1), (2047, 2)]
        check(Case(4, 1, 8, 300, batch, split=split, largest=3))
        check(Case(2, 1, 2, 10, batch, split=split, largest=1))  # few scores, mostly equal ones


def test_all_scores_equal_choose_the_first_positions() -> None:
    case = Case(4, 1, 8, 6, [(1000, 1), (20, 3)], split=True)
    case.q[:] = 0
    assert check(case)[0].tolist() == list(range(6))


def test_zero_and_minus_zero_are_equal() -> None:
    """relu gives 0, which a negative weight makes -0."""
    case = Case(1, 1, 1, 4, [(40, 1)])
    case.q[:], case.cache[:], case.k[:] = 1, -1, -1
    case.weights[:] = -3
    assert check(case)[0].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "mask",
    [
        "causal & window(40)",
        "causal & chunk(48)",
        "causal & (window(17) | first(3))",
        "causal & window(5)",
    ],
)
def test_masks(mask: str) -> None:
    for split in (False, True):
        check(Case(4, 1, 8, 12, [*RAGGED, (500, 3)], mask=mask, split=split))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_types_round_what_is_appended(dtype: str) -> None:
    case = Case(4, 1, 8, 12, [*RAGGED, (500, 3)], dtype=dtype, split=True)
    case.k += torch.rand_like(case.k) / 512  # not a number of 16 bits
    check(case)


def test_empty_sequences_and_other_vector_widths() -> None:
    if CPU.name == "aarch64":
        pytest.skip("this machine is no x86-64")
    batch = [(3, 0), (99, 1), (4, 0), (4, 0), (0, 50), (7, 0)]
    for cpu in (CPU, cpu_by_name("x86-64-v3")):
        check(Case(8, 2, 6, 7, batch, cpu=cpu, split=True))


def test_scores_of_real_numbers() -> None:
    """Of these no two at the border are so close that the order of a sum decides."""
    case = Case(12, 1, 64, 50, [(900, 1), (300, 2)])
    for name in ("q", "k", "weights", "cache"):
        setattr(case, name, torch.randn(getattr(case, name).shape))
    check(case)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(data=st.data())
def test_anything(data: st.DataObject) -> None:
    kv_heads = data.draw(st.integers(1, 3), "kv_heads")
    old = st.integers(0, 90) | st.sampled_from([255, 256, 600])
    batch = data.draw(st.lists(st.tuples(old, st.integers(1, 20)), min_size=1, max_size=3), "batch")
    check(
        Case(
            heads=kv_heads * data.draw(st.integers(1, 20), "group"),
            kv_heads=kv_heads,
            dim=data.draw(st.integers(1, 130), "dim"),
            count=data.draw(st.integers(1, 300), "count"),
            batch=batch,
            mask=data.draw(st.sampled_from(["causal", "causal & window(70)"]), "mask"),
            dtype=data.draw(st.sampled_from(["float32", "float16", "bfloat16"]), "dtype"),
            split=data.draw(st.booleans(), "split"),
            largest=data.draw(st.integers(1, 3), "largest"),
        )
    )


def test_nothing_is_allocated_on_the_heap() -> None:
    block = Case(16, 1, 64, 2048, [(0, 1)]).layout.index_block_of("index1")
    kernel = choose_keys(
        16, block, 2048, q_stride=1024, w_stride=16, mask=Mask(), split=True, cpu=CPU
    )
    kinds = ["int32", *["float32"] * 3, "int64", "int32", "int32", "int32"]
    assert "AllocWorkspace" not in assembly(kernel, kinds, CPU)
    combine = choose_combine(16, block, 2048, mask=Mask(), cpu=CPU)
    assert "AllocWorkspace" not in assembly(combine, ["int32", "int64", *["int32"] * 3], CPU)


def test_more_candidates_than_a_stack_holds_are_refused() -> None:
    (lowering,) = lowerings_of(torch.ops.gw.cached_choose_keys.default)
    assert lowering.when is not None
    graph, target = fx.Graph(), torch.ops.gw.cached_choose_keys.default
    for count, reason in ((1 << 15, None), (40_000, "it chooses 40000 keys, more than 32768")):
        node = graph.call_function(target, (), {"count": count, "mask": "causal"})
        assert lowering.when(cast(LoweringContext, None), node) == reason


def test_the_scratch_has_room_for_the_candidates() -> None:
    graph = fx.Graph()
    step = graph.call_function(
        torch.ops.gw.cached_choose_keys.default, (), {"count": 5, "mask": "causal"}
    )
    (found,) = scratch(step, 8)
    assert found.row_bytes == 4 * ATTENTION_SEGMENTS * candidate_words(5)
    assert scratch(step, 512) == ()
