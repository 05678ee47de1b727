"""Phases of adapters are left out of steps without any, and threads still meet where they must."""

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

# The second thread writes late: who does not meet it in front of `read` finds nothing there.
KERNELS = """
#include <stdint.h>
#include <time.h>
int32_t write(int32_t thread, int32_t threads, int32_t rows, volatile int64_t *x) {
  struct timespec some = {0, 3000000};
  if (thread) nanosleep(&some, 0);
  x[thread] = 1 + thread;
  return 0;
}
int32_t change(int32_t thread, int32_t threads, int32_t rows, volatile int64_t *x) {
  x[thread] *= 10;
  return 0;
}
int32_t read(int32_t thread, int32_t threads, int32_t rows, volatile int64_t *x, float *out) {
  out[thread] = x[1 - thread];
  return 0;
}
"""
THREADS, CHOSEN = 2, 7


def phase(name: str, *operands: Operand, adapters: bool = False) -> Phase:
    func: Any = None  # it is written in C
    return Phase(name, Kernel(name, func), operands, "T", adapters=adapters)


@pytest.fixture(scope="module")
def code(tmp_path_factory: pytest.TempPathFactory) -> StepCode:
    x = Operand("arena", 64, buffer="x", written=True)
    changes = [phase("change", x, adapters=True) for _ in range(2)]
    phases = [phase("write", x), *changes, phase("read", x.read(), Operand("logits"))]
    meetings = Meetings(frozenset(), (False, True, True, False))
    ends = Meetings(frozenset(), (False, False))
    folder = tmp_path_factory.mktemp("phases")
    every = {"decode": phases, "prefill": [phases[0], changes[0]]}
    source = entry_source(every, {"decode": meetings, "prefill": ends}, {})
    (folder / "entries.c").write_text(source)
    (folder / "kernels.c").write_text(KERNELS)
    for file in (folder / "entries.c", folder / "kernels.c", _POOL):
        macros = _pool_macros(THREADS) if file is _POOL else None
        compile_source(file, folder / f"{file.stem}.o", macros=macros)
    link([folder / f"{name}.o" for name in ("entries", "kernels", "step_pool")], folder / "step.so")
    return StepCode(folder / "step.so")


@pytest.mark.parametrize("tokens", [1, 9])
def test_they_run_where_one_is_chosen(code: StepCode, tokens: int) -> None:
    regions = {name: (ctypes.c_int64 * 32)() for name in PARAMETERS}
    batch, logits = (ctypes.c_int32 * 8)(tokens, 1, 1, 1), (ctypes.c_float * 8)()
    given: dict[str, Any] = {**regions, "batch": batch, "logits": logits}
    pointers = (ctypes.c_void_p * len(PARAMETERS))(*[ctypes.addressof(x) for x in given.values()])
    pool = StepPool(code, THREADS, own_bytes=256, alone_rows=2, rows=4)
    for chosen in (0, 1, 0, 0, 1):
        batch[CHOSEN] = chosen
        regions["arena"][8] = regions["arena"][9] = 0
        pool.run("decode", pointers)
        assert list(logits[:THREADS]) == [2 * 100**chosen, 1 * 100**chosen]
        pool.run("prefill", pointers)  # ends with one that may be left out
        assert list(regions["arena"][8:10]) == [10**chosen, 2 * 10**chosen]
