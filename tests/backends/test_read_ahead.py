"""What a thread that waits may read ahead: its share of the weight that is streamed next."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest
from test_entries import kernel

from graphwright.backends.tvm.entries import entry_source
from graphwright.backends.tvm.link import compile_source, link
from graphwright.backends.tvm.meetings import Meetings
from graphwright.backends.tvm.phases import PARAMETERS, Operand, Phase

# A pool that keeps what each meeting is told, and kernels that do nothing.
POOL = """
#include <stdint.h>
#define EXPORTED __attribute__((visibility("default")))
EXPORTED const char *told[2 * 8];
static int met;
int32_t gw_barrier(void *pool, const char *next, const char *end) {
  told[met++] = next, told[met++] = end;
  return 0;
}
int32_t gw_take_part(void *pool, int32_t phase, int32_t thread, int32_t each) { return -1; }
int32_t small(int32_t thread, int32_t threads, int32_t rows, void *x) { return 0; }
int32_t product(int32_t thread, int32_t threads, int32_t rows, void *x, void *w) { return 0; }
"""
THREADS, BLOB, WEIGHTS = 3, 64, 1 << 20  # the last: where the weights region is said to be


def meetings_of(folder: Path, stream: int, thread: int, alone: bool) -> list[tuple[int, int]]:
    """[next, end) in the weight, at each meeting, of: small, product, product, small, small."""
    small = Phase("a", kernel("small"), (Operand("logits"),), "T")
    operands = (Operand("logits"), Operand("weights", 0, "w"))
    product = Phase("b", kernel("product"), operands, "T", stream=stream)
    phases = [small, product, product, small, small]
    meetings = Meetings(frozenset(), (True, False, True, True, True))
    source = entry_source({"decode": phases}, {"decode": meetings}, {"w": BLOB})
    (folder / "entries.c").write_text(source)
    (folder / "pool.c").write_text(POOL)
    for name in ("entries", "pool"):
        compile_source(folder / f"{name}.c", folder / f"{name}.o")
    link([folder / "entries.o", folder / "pool.o"], folder / "step.so")
    library = ctypes.CDLL(str(folder / "step.so"))
    batch = (ctypes.c_int32 * 8)(1, 1, 1, 1)
    places = {"batch": ctypes.addressof(batch), "weights": WEIGHTS}
    pointers = [ctypes.c_void_p(places.get(name, 0)) for name in PARAMETERS]
    assert library.decode(thread, THREADS, int(alone), None, None, *pointers) == 0
    told = [each or 0 for each in (ctypes.c_void_p * 16).in_dll(library, "told")]
    start = WEIGHTS + BLOB
    return [(told[i] and told[i] - start, told[i + 1] and told[i + 1] - start) for i in (0, 2, 4)]


@pytest.mark.parametrize(
    ("stream", "thread", "share"),
    [
        (600, 0, (0, 200)),
        (600, 2, (400, 600)),
        (3 << 20, 1, (1 << 20, (1 << 20) + (256 << 10))),
    ],
)
def test_a_waiting_thread_reads_its_share_of_what_is_next(
    tmp_path: Path, stream: int, thread: int, share: tuple[int, int]
) -> None:
    """Before the first product, at most 256 KB; after the last one there is nothing to read."""
    assert meetings_of(tmp_path, stream, thread, alone=True) == [share, (0, 0), (0, 0)]


def test_large_steps_and_phases_without_a_stream_read_nothing(tmp_path: Path) -> None:
    assert meetings_of(tmp_path, 600, 1, alone=False) == [(0, 0)] * 3
    assert meetings_of(tmp_path, 0, 1, alone=True) == [(0, 0)] * 3
