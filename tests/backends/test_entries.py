"""Entries as tables: which kernel is called with what, by which thread, for how many rows."""

from __future__ import annotations

import ctypes
from typing import Any

import pytest

from graphwright.backends.tvm.build import _POOL, _pool_macros
from graphwright.backends.tvm.entries import entry_source
from graphwright.backends.tvm.kernels.kernel import Kernel
from graphwright.backends.tvm.link import compile_source, link
from graphwright.backends.tvm.meetings import Meetings
from graphwright.backends.tvm.phases import PARAMETERS, Operand, Phase
from graphwright.runtime.step_code import StepCode, StepPool

# first: what it was called with, in the place of each thread, or of both. second: that, a weight
# and its rows.
KERNELS = """
#include <stdint.h>
int32_t first(int32_t thread, int32_t threads, int32_t rows, int64_t *tokens, int64_t *x) {
  x[thread] = tokens[0] + 100 * thread + 10 * threads + rows;
  if (threads == 1) x[1] = x[0];
  return 0;
}
int32_t second(int32_t thread, int32_t threads, int32_t rows, int64_t *x, int64_t *w, float *out) {
  out[thread] = x[thread] + w[0] + 1000000 * rows;
  return w[0] < 0 && thread == threads - 1 ? 5 : 0;
}
"""
THREADS, OFFSET = 2, 64


def kernel(name: str) -> Kernel:
    func: Any = None  # it is written in C
    return Kernel(name, func)


def value(written: bool = False) -> Operand:
    return Operand("arena", OFFSET, buffer="x", written=written)


@pytest.fixture(scope="module")
def code(tmp_path_factory: pytest.TempPathFactory) -> StepCode:
    phases = [
        Phase("a", kernel("first"), (Operand("tokens"), value(written=True)), "T", replicated=True),
        Phase("b", kernel("second"), (value(), Operand("weights", 8, "w"), Operand("logits")), "R"),
    ]
    meetings = Meetings(frozenset({"x"}), (False, False))
    folder = tmp_path_factory.mktemp("entries")
    every = {"decode": phases, "prefill": phases[:1]}
    short = Meetings(frozenset({"x"}), (False,))
    source = entry_source(every, {"decode": meetings, "prefill": short}, {"w": 16})
    (folder / "entries.c").write_text(source)
    (folder / "kernels.c").write_text(KERNELS)
    for file in (folder / "entries.c", folder / "kernels.c", _POOL):
        macros = _pool_macros(THREADS) if file is _POOL else None
        compile_source(file, folder / f"{file.stem}.o", macros=macros)
    objects = [folder / f"{name}.o" for name in ("entries", "kernels", "step_pool")]
    link(objects, folder / "step.so")
    return StepCode(folder / "step.so")


def run(
    code: StepCode, tokens: int, sampled: int, weight: int = 7
) -> tuple[list[float], list[int]]:
    """The logits of a step, and what lies in the arena at x afterwards."""
    regions = {name: (ctypes.c_int64 * 32)() for name in PARAMETERS}
    batch = (ctypes.c_int32 * 8)(tokens, 1, 1, sampled)
    logits = (ctypes.c_float * 8)()
    regions["tokens"][0] = 5
    regions["weights"][(16 + 8) // 8] = weight
    given: dict[str, Any] = {**regions, "batch": batch, "logits": logits}
    pointers = (ctypes.c_void_p * len(PARAMETERS))(*[ctypes.addressof(x) for x in given.values()])
    pool = StepPool(code, THREADS, own_bytes=256, alone_rows=2, rows=4)
    pool.run("decode", pointers)
    return list(logits[:THREADS]), list(regions["arena"][OFFSET // 8 :][:2])


def test_threads_share_the_phases_of_a_large_step(code: StepCode) -> None:
    logits, arena = run(code, tokens=9, sampled=3)
    assert arena == [5 + 100 * thread + 10 * THREADS + 9 for thread in range(THREADS)]
    assert logits == [each + 7 + 3_000_000 for each in arena]


def test_each_thread_does_all_of_a_small_phase_in_memory_of_its_own(code: StepCode) -> None:
    logits, arena = run(code, tokens=1, sampled=1)
    assert arena == [0, 0]
    assert logits == [5 + 10 + 1 + 7 + 1_000_000] * THREADS


@pytest.mark.parametrize("tokens", [1, 9])
def test_a_phase_for_sampled_rows_is_not_called_without_any(code: StepCode, tokens: int) -> None:
    assert run(code, tokens, sampled=0)[0] == [0, 0]


@pytest.mark.parametrize("tokens", [1, 9])
def test_what_a_kernel_returns_ends_the_step(code: StepCode, tokens: int) -> None:
    with pytest.raises(RuntimeError, match="it returned 5"):
        run(code, tokens, sampled=1, weight=-1)
