"""The threads of a step: several engines, forks, more threads than CPUs, wrong use."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from graphwright.backends.tvm.build import _POOL, _pool_macros
from graphwright.backends.tvm.link import compile_source, link
from graphwright.backends.tvm.phases import PARAMETERS
from graphwright.runtime.step_code import StepCode, StepPool

# Each thread adds its number + 1 to its own place, then reads everybody's after the barrier.
ENTRIES = """
#include <stdint.h>
typedef struct Pool Pool;
int32_t gw_barrier(Pool *pool, const char *next, const char *end);
const int32_t gw_most_phases = 1;
__attribute__((visibility("default")))
int32_t decode(int32_t thread, int32_t threads, int32_t alone, Pool *pool, int64_t *own,
               int32_t *batch, int64_t *places, int64_t *sums) {
  for (int round = 0; round < batch[1]; round++) {
    places[thread] += thread + 1;
    gw_barrier(pool, (char *)places, (char *)places + batch[2]);
    int64_t sum = 0;
    for (int i = 0; i < threads; i++) sum += places[i];
    sums[thread] = sum;
    gw_barrier(pool, 0, 0);
  }
  if (alone) own[0] = thread;
  sums[thread] += alone && own[0] != thread;
  return 0;
}
__attribute__((visibility("default")))
int32_t prefill(int32_t thread, int32_t threads, int32_t alone, Pool *pool, int64_t *own) {
  return thread == threads - 1 ? 7 : 0;
}
"""
# Another library, of more phases: in each, the threads share their parts among them.
PHASES, PARTS = 50, 3
OTHER_ENTRIES = f"""
#include <stdint.h>
typedef struct Pool Pool;
int32_t gw_barrier(Pool *pool, const char *next, const char *end);
int32_t gw_take_part(Pool *pool, int32_t phase, int32_t thread, int32_t each);
const int32_t gw_most_phases = {PHASES};
__attribute__((visibility("default")))
int32_t decode(int32_t thread, int32_t threads, int32_t alone, Pool *pool, int64_t *own,
               int32_t *batch, int64_t *places, int64_t *sums) {{
  for (int phase = 0; phase < {PHASES}; phase++) {{
    int32_t part;
    while ((part = gw_take_part(pool, phase, thread, {PARTS})) >= 0)
      places[phase * threads * {PARTS} + part] += phase + part;
    gw_barrier(pool, 0, 0);
  }}
  return 0;
}}
__attribute__((visibility("default")))
int32_t prefill(int32_t thread, int32_t threads, int32_t alone, Pool *pool, int64_t *own) {{
  return 9;
}}
"""
ROUNDS = 20
VOCABULARY = 1003


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return library(tmp_path_factory.mktemp("pool"), ENTRIES)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return library(tmp_path_factory.mktemp("other"), OTHER_ENTRIES)


def library(folder: Path, entries: str) -> Path:
    (folder / "entries.c").write_text(entries)
    for source in (folder / "entries.c", _POOL):
        compile_source(source, folder / f"{source.stem}.o", macros=_pool_macros(VOCABULARY))
    link([folder / "entries.o", folder / "step_pool.o"], folder / "step.so")
    return folder / "step.so"


class Counter:
    """A pool of `threads` and the sums its steps leave."""

    def __init__(self, path: Path, threads: int, tokens: int = 1, *, pin: bool = False) -> None:
        self.threads = threads
        self.pool = StepPool(StepCode(path), threads, own_bytes=64, alone_rows=2, rows=4, pin=pin)
        self.batch = (ctypes.c_int32 * 8)(tokens, ROUNDS, 1 << 16)
        self.places, self.sums = ((ctypes.c_int64 * 64)() for _ in range(2))
        found = [ctypes.addressof(each) for each in (self.batch, self.places, self.sums)]
        self.pointers = (ctypes.c_void_p * len(PARAMETERS))(*found)
        self.steps = 0

    def check(self, steps: int = 5) -> None:
        for _ in range(steps):
            self.pool.run("decode", self.pointers)
            self.steps += 1
            total = self.steps * ROUNDS * self.threads * (self.threads + 1) // 2
            assert self.sums[: self.threads] == [total] * self.threads


@pytest.mark.parametrize("tokens", [1, 9])
@pytest.mark.parametrize("threads", [1, 2, 3, 17])
def test_every_thread_meets_every_other(path: Path, threads: int, tokens: int) -> None:
    Counter(path, threads, tokens).check(20)


def test_two_pools_from_two_threads(path: Path) -> None:
    with ThreadPoolExecutor(2) as executor:
        counters = [Counter(path, 3), Counter(path, 2)]
        for future in [executor.submit(counter.check, 40) for counter in counters]:
            future.result()


def test_a_forked_child_goes_on_and_so_does_its_parent(path: Path) -> None:
    used, unused = Counter(path, 3), Counter(path, 2)
    used.check()
    child = os.fork()
    if child == 0:  # no pytest in here: the exit status is the answer
        try:
            used.check()
            unused.check()
            Counter(path, 2).check()
            os._exit(0)
        finally:
            os._exit(1)
    used.check()
    assert os.waitpid(child, 0)[1] == 0
    used.check()


def test_pinned_workers_stay_and_the_caller_is_free(path: Path) -> None:
    before, cpus = set(os.listdir("/proc/self/task")), os.sched_getaffinity(0)
    counter = Counter(path, 3, pin=True)
    counter.check()
    workers = [int(task) for task in set(os.listdir("/proc/self/task")) - before]
    found = [os.sched_getaffinity(worker) for worker in workers]
    assert len(found) == 2 and all(len(each) == 1 and each <= cpus for each in found)
    assert os.sched_getaffinity(0) == cpus
    counter.pool.close()


def test_threads_end_with_their_pool(path: Path) -> None:
    before = threading.active_count(), len(os.listdir("/proc/self/task"))
    counter = Counter(path, 5)
    counter.check(1)
    assert len(os.listdir("/proc/self/task")) == before[1] + 4
    counter.pool.close()
    assert (threading.active_count(), len(os.listdir("/proc/self/task"))) == before


def test_the_status_of_any_thread_counts(path: Path) -> None:
    counter = Counter(path, 2)
    with pytest.raises(RuntimeError, match="step 'prefill' failed: it returned 7"):
        counter.pool.run("prefill", counter.pointers)
    counter.check()


def test_a_process_ends_while_workers_wait(path: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from graphwright.runtime.step_code import StepCode, StepPool\n"
        "pool = StepPool(StepCode(Path(sys.argv[1])), 3, own_bytes=0, alone_rows=0, rows=1)\n"
        "assert pool.close.alive\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, timeout=60
    )
    assert (result.returncode, result.stderr) == (0, b"")


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_entries_of_another_library_run_on_a_pool_of_enough_phases(
    path: Path, other: Path, threads: int
) -> None:
    """Steps of both libraries take turns on the threads of one pool."""
    counter, code = Counter(path, threads), StepCode(other)
    counter.pool.close()
    counter.pool = StepPool(
        StepCode(path), threads, own_bytes=64, alone_rows=2, rows=4, phases=PHASES
    )
    parts = (ctypes.c_int64 * (PHASES * threads * PARTS))()
    pointers = (ctypes.c_void_p * len(PARAMETERS))(0, ctypes.addressof(parts))
    pointers[0] = ctypes.addressof(counter.batch)
    once = [phase + part for phase in range(PHASES) for part in range(threads * PARTS)]
    for step in range(1, 20):
        counter.pool.run("decode", pointers, code=code)
        assert list(parts) == [step * value for value in once]
        counter.check(1)
    with pytest.raises(RuntimeError, match="step 'prefill' failed: it returned 9"):
        counter.pool.run("prefill", pointers, code=code)
    counter.check(1)


VALUES = (-np.inf, -1.5, 0.0, 2.0, np.inf)


@pytest.mark.parametrize("threads", [1, 2, 3, 16])
@pytest.mark.parametrize("seed", range(12))
def test_the_largest_logit_is_found(path: Path, seed: int, threads: int) -> None:
    """Of equal ones the first; -1 where one of the row is NaN."""
    random = np.random.default_rng(seed)
    counter = _counters(path, threads)
    few = random.choice(VALUES, 1 + seed % 4)
    logits = random.choice(few, (3, VOCABULARY)).astype(np.float32)
    for row in range(seed % 3):
        logits[row, random.integers(VOCABULARY)] = np.nan
    counter.batch[3] = 3
    counter.pointers[list(PARAMETERS).index("logits")] = logits.ctypes.data
    chosen = np.full(4, 55, np.int32)
    counter.pool.run("decode", counter.pointers, ctypes.c_void_p(chosen.ctypes.data))
    want = np.where(np.isnan(logits).any(1), -1, logits.argmax(1))
    assert chosen.tolist() == [*want.tolist(), 55]


@cache
def _counters(path: Path, threads: int) -> Counter:
    return Counter(path, threads)
