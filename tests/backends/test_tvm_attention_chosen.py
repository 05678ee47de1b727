"""append_kv and attention_chosen of the TVM backend against gw.cached_attention."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from attention_cases import CPU, DTYPES, RAGGED, Case, rows_with_gap
from hypothesis import given, settings
from hypothesis import strategies as st

from graphwright.backends.tvm.kernels.append_kv import append_kv
from graphwright.backends.tvm.kernels.attention_chosen import attention_chosen
from graphwright.backends.tvm.kernels.kv_values import KvBlock
from graphwright.backends.tvm.kernels.standalone import assembly, standalone
from graphwright.backends.tvm.target import cpu_by_name
from graphwright.ir.tolerance import check_close


def check(case: Case) -> None:
    want, caches = case.reference()
    gap, block = case.padding, case.block
    append = append_kv(
        block, k_stride=case.kv_heads * case.dim + gap,
        v_stride=case.kv_heads * case.value_dim + gap, cpu=case.cpu,
    )  # fmt: skip
    attend = attention_chosen(
        case.heads, block, case.count, q_stride=case.heads * case.dim + gap, scale=case.dim**-0.5,
        softcap=case.softcap, slopes=case.slopes, sinks=case.sinks, cpu=case.cpu,
    )  # fmt: skip
    assert case.chosen is not None
    batch = np.array([case.tokens, len(case.batch), case.table.shape[1], 0, 0, 0, 0, 0], np.int32)
    positions, start, table = case.positions.numpy(), case.start.numpy(), case.table.numpy()
    extras = [each.numpy() for each in case.extras if each is not None]
    k, v, q = (rows_with_gap(each, gap) for each in (case.k, case.v, case.q))
    pointers = [pointer for _, pointer in block.pointers]
    index, real = ["int64", "int32", "int32"], "float32"
    write = standalone(append, ["int32", real, real, *pointers, *index], case.cpu)
    kinds = ["int32", real, *pointers, *index, "int32", *[real] * (len(extras) + 1)]
    attending = standalone(attend, kinds, case.cpu)
    results = []
    for threads in (1, 2, 3):
        memory = case.memory()
        cache = [
            memory[case.layout.offsets[name] :][:-64].view(pointer)
            for name, pointer in zip(case.names, pointers, strict=True)
        ]
        write(case.tokens, threads, batch, k, v, *cache, positions, start, table)
        for found, cached in zip(case.read(memory), caches, strict=True):
            for place in case.where([old + new for old, new in case.batch]):
                assert torch.equal(found[place], cached[place])
        out = np.full(want.numel() + 32, -7.0, np.float32)
        given = [batch, q, *cache, positions, start, table, case.chosen.numpy(), *extras]
        attending(case.tokens, threads, *given, out)
        assert (out[want.numel() :] == -7.0).all()
        check_close(torch.from_numpy(out[: want.numel()]).reshape(want.shape), want)
        results.append(out)
    assert all(np.array_equal(each, results[0]) for each in results)


@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim", "value_dim", "count"),
    [(4, 4, 24, 16, 8), (8, 2, 16, 33, 16), (6, 1, 5, 7, 3), (16, 1, 64, 64, 64),
     (3, 3, 192, 128, 1), (4, 2, 16, 300, 200)],
)  # fmt: skip
def test_shapes(heads: int, kv_heads: int, dim: int, value_dim: int, count: int) -> None:
    check(Case(heads, kv_heads, dim, value_dim, [*RAGGED, (300, 2)], padding=3, count=count))


@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_types(dtype: str) -> None:
    check(Case(8, 2, 20, 24, [*RAGGED, (64, 33)], dtype=dtype, count=20))
    check(Case(3, 3, 17, 5, [(30, 2), (0, 3)], dtype=dtype, count=4))


def test_slopes_sinks_softcap_and_windows() -> None:
    check(Case(4, 2, 16, 16, RAGGED, slopes=True, sinks=True, count=5))
    check(Case(4, 4, 16, 16, RAGGED, softcap=2.0, mask="causal & window(12)", count=7))


def test_empty_sequences_are_skipped() -> None:
    check(Case(4, 2, 16, 16, [(3, 0), (9, 1), (4, 0), (4, 0), (0, 5), (7, 0)], count=4))


def test_other_vector_width() -> None:
    if CPU.name == "aarch64":
        pytest.skip("this machine is no x86-64")
    check(Case(8, 2, 20, 20, RAGGED, count=9, cpu=cpu_by_name("x86-64-v3")))


def test_scores_far_apart_stay_finite() -> None:
    case = Case(2, 2, 16, 16, [(60, 9)], count=12)
    case.q *= 200
    check(case)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(data=st.data())
def test_anything(data: st.DataObject) -> None:
    kv_heads = data.draw(st.integers(1, 3), "kv_heads")
    old = st.integers(0, 90) | st.sampled_from([255, 600])
    batch = data.draw(st.lists(st.tuples(old, st.integers(1, 20)), min_size=1, max_size=3), "batch")
    check(
        Case(
            heads=kv_heads * data.draw(st.integers(1, 6), "group"),
            kv_heads=kv_heads,
            dim=data.draw(st.integers(1, 200), "dim"),
            value_dim=data.draw(st.integers(1, 200), "value_dim"),
            batch=batch,
            slopes=data.draw(st.booleans(), "slopes"),
            sinks=data.draw(st.booleans(), "sinks"),
            dtype=data.draw(st.sampled_from(sorted(DTYPES)), "dtype"),
            count=data.draw(st.integers(1, 100), "count"),
        )
    )


def test_nothing_is_allocated_on_the_heap() -> None:
    block = KvBlock(8, 128, 256, 2**20, "int8", True)
    kernel = attention_chosen(
        64, block, 2048, q_stride=8192, scale=0.1, softcap=3.0, slopes=True, sinks=True, cpu=CPU
    )
    pointers = [pointer for _, pointer in block.pointers]
    kinds = ["int32", "float32", *pointers, "int64", "int32", "int32", "int32", *["float32"] * 3]
    assert "AllocWorkspace" not in assembly(kernel, kinds, CPU)
