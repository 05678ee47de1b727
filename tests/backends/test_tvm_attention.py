"""append_kv and attention of the TVM backend against gw.cached_attention."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from attention_cases import CPU, DTYPES, RAGGED, Case, rows_with_gap
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import fx

from graphwright.backends.tvm.kernels.append_kv import append_kv
from graphwright.backends.tvm.kernels.attention import attention
from graphwright.backends.tvm.kernels.attention_combine import attention_combine
from graphwright.backends.tvm.kernels.attention_shape import AttentionShape
from graphwright.backends.tvm.kernels.kernel import Kernel
from graphwright.backends.tvm.kernels.kv_values import KvBlock
from graphwright.backends.tvm.kernels.standalone import aligned, assembly, standalone
from graphwright.backends.tvm.target import Cpu, cpu_by_name
from graphwright.ir.masks import Mask
from graphwright.ir.memory import ATTENTION_CHUNK, ATTENTION_SEGMENTS, scratch
from graphwright.ir.tolerance import check_close


def check(case: Case) -> None:
    want, caches = case.reference()
    gap, block = case.padding, case.block
    mask = Mask.parse(case.mask)
    append = append_kv(
        block,
        k_stride=case.kv_heads * case.dim + gap,
        v_stride=case.kv_heads * case.value_dim + gap,
        cpu=case.cpu,
    )
    attend = attention(
        case.heads, block, q_stride=case.heads * case.dim + gap, scale=case.dim**-0.5, mask=mask,
        softcap=case.softcap, slopes=case.slopes, sinks=case.sinks, split=case.split,
        max_rows=case.tokens, cpu=case.cpu,
    )  # fmt: skip
    combine = attention_combine(case.heads, block, mask=mask, max_rows=case.tokens, cpu=case.cpu)
    batch = np.array([case.tokens, len(case.batch), case.table.shape[1], 0, 0, 0, 0, 0], np.int32)
    positions, start, table = case.positions.numpy(), case.start.numpy(), case.table.numpy()
    extras = [each.numpy() for each in case.extras if each is not None]
    k, v, q = (rows_with_gap(each, gap) for each in (case.k, case.v, case.q))
    room = case.value_dim + 2 + ATTENTION_CHUNK + (-(-case.dim // 2) if block.scaled else 0)
    stride = ATTENTION_SEGMENTS * case.heads * room
    pointers = [pointer for _, pointer in block.pointers]
    index, real = ["int64", "int32", "int32"], "float32"
    write = standalone(append, ["int32", real, real, *pointers, *index], case.cpu)
    more = [real] * (len(extras) + case.split + 1)
    attending = standalone(attend, ["int32", real, *pointers, *index, *more], case.cpu)
    combining = standalone(combine, ["int32", "int64", "int32", real, real], case.cpu)
    results = []
    for threads in (1, 2, 3, ATTENTION_SEGMENTS):  # as many parts as segments, too
        memory = case.memory()
        cache = [
            memory[case.layout.offsets[name] :][:-64].view(pointer)
            for name, pointer in zip(case.names, pointers, strict=True)
        ]
        write(case.tokens, threads, batch, k, v, *cache, positions, start, table)
        for found, cached in zip(case.read(memory), caches, strict=True):
            for place in case.where([old + new for old, new in case.batch]):
                assert torch.equal(found[place][..., : cached.shape[-1]], cached[place])
        out = np.full(want.numel() + 32, -7.0, np.float32)
        partial = aligned(np.full(case.tokens * stride + 16, np.nan, np.float32))
        given = [batch, q, *cache, positions, start, table, *extras]
        attending(case.tokens, threads, *given, *[partial] * case.split, out)
        if case.split:
            combining(case.tokens, threads, batch, positions, start, partial, out)
            assert np.isnan(partial[-16:]).all()
        assert (out[want.numel() :] == -7.0).all()
        kind = "16 bits" if block.scaled else "reassociating"  # queries and weights become int16
        check_close(torch.from_numpy(out[: want.numel()]).reshape(want.shape), want, kind)
        results.append(out)
    assert all(np.array_equal(each, results[0], equal_nan=True) for each in results)


@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim", "value_dim"),
    [(8, 2, 16, 16), (6, 1, 24, 7), (5, 5, 5, 33), (28, 4, 16, 16), (64, 1, 8, 8),
     (3, 1, 192, 128)],
)  # fmt: skip
def test_shapes(heads: int, kv_heads: int, dim: int, value_dim: int) -> None:
    check(Case(heads, kv_heads, dim, value_dim, RAGGED, padding=3))


@pytest.mark.parametrize(
    "mask",
    [
        "causal & window(3)",
        "causal & window(40)",
        "causal & chunk(24)",
        "causal & (window(17) | first(1))",
        "causal & (window(5) | first(20))",
        "causal & window(20) & chunk(32)",
    ],
)
def test_masks(mask: str) -> None:
    check(Case(4, 2, 16, 16, [*RAGGED, (3, 70)], mask=mask))


def test_slopes_sinks_and_softcap() -> None:
    check(Case(4, 2, 16, 16, RAGGED, slopes=True, split=True))
    check(Case(6, 2, 8, 8, RAGGED, slopes=True, sinks=True, mask="causal & window(12)"))
    check(Case(4, 2, 16, 16, RAGGED, softcap=2.0))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int8"])
def test_types(dtype: str) -> None:
    check(Case(8, 2, 20, 24, [*RAGGED, (64, 33)], dtype=dtype, split=True))


# One block, one chunk and one segment, each to its end and one token more; several segments.
ENDS = [(15, 1), (16, 1), (63, 1), (64, 1), (255, 1), (256, 1), (700, 1), (2100, 1)]


def test_tokens_that_come_alone_are_cut_into_segments() -> None:
    check(Case(4, 2, 16, 16, [*ENDS, (300, 7)], sinks=True, split=True))
    check(Case(3, 1, 8, 8, ENDS[-3:], mask="causal & (window(500) | first(3))", split=True))
    # Of five items four take turns at each block, then the fifth; threads get parts of a segment.
    check(Case(80, 1, 16, 16, ENDS[-2:], split=True))


@pytest.mark.parametrize("batch", [[(0, 1)], [(650, 33)], [(1, 1)] * 8,
                                   [(0, 31), (5, 1), (64, 32), (2, 9)]])  # fmt: skip
def test_batches(batch: list[tuple[int, int]]) -> None:
    check(Case(2, 2, 8, 8, batch))


def test_empty_sequences_are_skipped() -> None:
    check(Case(4, 2, 16, 16, [(3, 0), (9, 1), (4, 0), (4, 0), (0, 5), (7, 0)], split=True))


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_the_scratch_has_room_for_what_the_kernel_leaves(dtype: str) -> None:
    block = KvBlock(2, 17, 24, 2**16, dtype)
    graph = fx.Graph()
    sizes = ((3, 8, 17), (3, 2, 17), (3, 2, 24), (9, 16, 2, 17), (9, 16, 2, 24))
    kinds = (*[torch.float32] * 3, *[DTYPES[dtype]] * 2)
    given = [graph.placeholder(f"x{i}") for i in range(len(sizes))]
    for node, size, kind in zip(given, sizes, kinds, strict=True):
        node.meta["val"] = torch.empty(size, dtype=kind)
    step = graph.call_function(torch.ops.gw.cached_attention.default, tuple(given))
    step.meta["val"] = torch.empty(3, 8, 24)
    (found,) = scratch(step, 3)
    shape = AttentionShape(8, block, 0, 1.0, Mask(), 0.0, 8, True, 3)
    assert found.row_bytes == 4 * shape.partial_stride
    if dtype == "int8":
        assert shape.partial_query(ATTENTION_SEGMENTS - 1, 7) + 9 == shape.partial_stride


def test_other_vector_width() -> None:
    if CPU.name == "aarch64":
        pytest.skip("this machine is no x86-64")
    for heads, kv_heads in ((8, 2), (3, 3)):
        check(Case(heads, kv_heads, 20, 20, RAGGED, cpu=cpu_by_name("x86-64-v3")))
    plain = Cpu("plain", frozenset(), 4, False, "x86-64-v3")  # no instruction for pairs of int16
    check(Case(2, 1, 21, 11, RAGGED, dtype="int8", split=True, cpu=plain))


def test_pairs_of_integers_have_no_partner_or_several_pieces() -> None:
    check(Case(8, 2, 17, 5, [*RAGGED, (255, 2), (300, 1)], dtype="int8", split=True))
    check(Case(2, 1, 300, 16, RAGGED, dtype="int8"))
    check(Case(3, 1, 601, 8, [(70, 1), (3, 2)], dtype="int8", split=True, sinks=True))


@pytest.mark.parametrize("dim", [256, 600])
def test_the_largest_integers_do_not_overflow(dim: int) -> None:
    """All keys are 127 and all channels of a query equal, so that thousands of weights are equal
    too; then keys are 127 or -127, and one channel of the query outweighs the others, which are
    multiples of what it is rounded to: nothing else of them is lost."""
    case = Case(4, 1, dim, 16, [(2100, 1), (40, 3)], dtype="int8", split=True)
    case.caches[0][:] = 127
    case.caches[2][:] = 1 / 127
    case.k[:] = 1
    case.q[:] = torch.tensor([1.0, -1.0, 0.01, 100.0])[:, None] / dim**0.5
    check(case)
    signs = torch.randint(0, 2, case.caches[0].shape) * 2 - 1
    case.caches[0] = (127 * signs).to(torch.int8)
    case.q = torch.randint(-200, 201, case.q.shape) / 128
    case.q[..., 1] = min(2**15 - 1, (2**31 - 1) // (127 * dim)) / 128
    check(case)


def test_one_weight_or_one_value_larger_than_all_others() -> None:
    case = Case(4, 2, 32, 16, [(700, 1), (90, 5)], dtype="int8", split=True)
    first, second = case.where([700, 90])
    for block, place in ((first[0][333], first[1][333]), (second[0][70], second[1][70])):
        case.caches[0][block, place] = 127
        case.caches[3][block, place] *= 50
    case.q = case.q.abs() * 3
    check(case)


def test_what_is_no_number_stays_none() -> None:
    for dtype in ("float16", "int8"):
        case = Case(4, 2, 16, 16, [(70, 1), (9, 3)], dtype=dtype, split=True)
        case.q[:, 1, 3] = float("nan")
        check(case)


def test_scores_far_apart_stay_finite() -> None:
    case = Case(2, 2, 16, 16, [(60, 9)])
    case.q *= 200
    check(case)


MASKS = ["causal", "causal & window(9)", "causal & (window(30) | first(4))", "causal & chunk(48)"]


@settings(max_examples=12, deadline=None, derandomize=True)
@given(data=st.data())
def test_anything(data: st.DataObject) -> None:
    """Head dims that fill no vector, groups that divide into no pass, contexts across segments."""
    kv_heads = data.draw(st.integers(1, 3), "kv_heads")
    old = st.integers(0, 90) | st.sampled_from([255, 256, 600])
    batch = data.draw(st.lists(st.tuples(old, st.integers(1, 33)), min_size=1, max_size=3), "batch")
    check(
        Case(
            heads=kv_heads * data.draw(st.integers(1, 9), "group"),
            kv_heads=kv_heads,
            dim=data.draw(st.integers(16, 256), "dim"),
            value_dim=data.draw(st.integers(16, 256), "value_dim"),
            batch=batch,
            mask=data.draw(st.sampled_from(MASKS), "mask"),
            softcap=data.draw(st.sampled_from([0.0, 0.0, 3.0]), "softcap"),
            slopes=data.draw(st.booleans(), "slopes"),
            sinks=data.draw(st.booleans(), "sinks"),
            dtype=data.draw(st.sampled_from([*sorted(DTYPES), "int8"]), "dtype"),
            split=data.draw(st.booleans(), "split"),
        )
    )


def kernel_of(cpu: Cpu, dtype: str) -> tuple[Kernel, list[str]]:
    block = KvBlock(8, 128, 256, 2**20, dtype)
    kernel = attention(
        64, block, q_stride=8192, scale=0.1, mask=Mask(window=40, first=4), softcap=3.0,
        slopes=True, sinks=True, split=True, max_rows=32, cpu=cpu,
    )  # fmt: skip
    pointers = [pointer for _, pointer in block.pointers]
    return kernel, ["int32", "float32", *pointers, "int64", "int32", "int32", *["float32"] * 4]


def test_nothing_is_allocated_on_the_heap() -> None:
    kernel, dtypes = kernel_of(CPU, "int8")
    assert "AllocWorkspace" not in assembly(kernel, dtypes, CPU)


@pytest.mark.parametrize(("cpu", "dtype", "instruction"), [
    ("x86-64-v3", "float16", "vcvtph2ps"), ("x86-64-v4", "bfloat16", "vpmovzxwd"),
    ("aarch64", "float16", "fcvtl"),
])  # fmt: skip
def test_values_are_converted_in_registers(cpu: str, dtype: str, instruction: str) -> None:
    kernel, dtypes = kernel_of(cpu_by_name(cpu), dtype)
    text = assembly(kernel, dtypes, cpu_by_name(cpu))
    assert instruction in text and not re.search(r"(callq?|bl)\s+__extendhfsf2", text)
