"""Phases cut into parts: each is computed once, and whoever is free takes what is left."""

from __future__ import annotations

import ctypes
from typing import Any

import pytest

from graphwright.backends.tvm.build import _POOL, _pool_macros
from graphwright.backends.tvm.entries import entry_source
from graphwright.backends.tvm.kernels.kernel import Kernel
from graphwright.backends.tvm.link import compile_source, link
from graphwright.backends.tvm.meetings import Meetings
from graphwright.backends.tvm.phases import PARAMETERS, PART_BYTES, Operand, Phase, parts_of
from graphwright.runtime.step_code import StepCode, StepPool

# count: adds 1 in the place of its part. held: the same, but part 0 waits until all others are
# done, at most ten seconds.
KERNELS = """
#include <stdatomic.h>
#include <stdint.h>
#include <time.h>
int32_t count(int32_t part, int32_t parts, int32_t rows, atomic_int *calls) {
  atomic_fetch_add(calls + part, 1);
  return 0;
}
int32_t held(int32_t part, int32_t parts, int32_t rows, atomic_int *calls) {
  const struct timespec moment = {0, 100000};
  for (int tries = 0; part == 0; tries++) {
    int done = 0;
    for (int i = 1; i < parts; i++) done += atomic_load(calls + i);
    if (done == parts - 1) break;
    if (tries == 100000) return 9;
    nanosleep(&moment, 0);
  }
  return count(part, parts, rows, calls);
}
"""
MANY, PLACES = 512, 512  # parts of a phase that is worth more than threads cut


@pytest.fixture(scope="module")
def code(tmp_path_factory: pytest.TempPathFactory) -> StepCode:
    def phase(name: str, parameter: str, parts: int) -> Phase:
        func: Any = None  # it is written in C
        return Phase(name, Kernel(name, func), (Operand(parameter),), "T", parts=parts)

    entries = {
        "decode": [phase("count", "kv", 7), phase("held", "logits", 64)],
        "prefill": [phase("count", "kv", MANY)],
    }
    folder = tmp_path_factory.mktemp("parts")
    meetings = {name: Meetings(frozenset(), (False,) * len(each)) for name, each in entries.items()}
    (folder / "entries.c").write_text(entry_source(entries, meetings, {}))
    (folder / "kernels.c").write_text(KERNELS)
    for file in (folder / "entries.c", folder / "kernels.c", _POOL):
        macros = _pool_macros(1) if file is _POOL else None
        compile_source(file, folder / f"{file.stem}.o", macros=macros)
    link([folder / f"{n}.o" for n in ("entries", "kernels", "step_pool")], folder / "step.so")
    return StepCode(folder / "step.so")


def calls(code: StepCode, entry: str, threads: int, tokens: int) -> tuple[list[int], list[int]]:
    """How often each part of the phases on `kv` and on `logits` was called, in two steps."""
    regions: dict[str, Any] = {name: (ctypes.c_int32 * PLACES)() for name in PARAMETERS}
    regions["batch"][0] = tokens
    found = [ctypes.addressof(region) for region in regions.values()]
    pointers = (ctypes.c_void_p * len(PARAMETERS))(*found)
    pool = StepPool(code, threads, own_bytes=64, alone_rows=2, rows=1)
    for _ in range(2):
        for name in ("kv", "logits"):
            ctypes.memset(regions[name], 0, ctypes.sizeof(regions[name]))
        pool.run(entry, pointers)
    pool.close()
    return list(regions["kv"]), list(regions["logits"])


def once(parts: int) -> list[int]:
    return [1] * parts + [0] * (PLACES - parts)


@pytest.mark.parametrize("tokens", [1, 9])
@pytest.mark.parametrize(("threads", "few", "many"), [(2, 6, 64), (3, 6, 63), (5, 5, 60)])
def test_every_part_is_computed_once_though_one_is_held_up(
    code: StepCode, threads: int, few: int, many: int, tokens: int
) -> None:
    assert calls(code, "decode", threads, tokens) == (once(few), once(many))


@pytest.mark.parametrize("threads", [1, 2, 16, 17, 200])
def test_there_are_so_many_parts_that_their_numbers_times_blocks_fit_32_bits(
    code: StepCode, threads: int
) -> None:
    expected = {1: 1, 2: 128, 16: 256, 17: 255, 200: 200}
    assert calls(code, "prefill", threads, 9)[0] == once(expected[threads])


def test_small_products_are_not_cut() -> None:
    assert [parts_of(size) for size in (0, PART_BYTES, 3 * PART_BYTES + 1)] == [1, 1, 3]
