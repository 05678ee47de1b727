"""How fast this machine reads memory right now: a loop of loads on pinned threads (probe.c).

The share of what the probe reads that a runtime reaches is worth something only if nothing that
computes can read faster. So the probe reads huge pages, as engines' weights can be, prefetches, has
a warm-up pass in each turn, and picks the fastest of several loops when it starts.
`probe_check.py` measures it against matrix kernels on the same memory.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

__all__ = ["Probe", "huge_pages"]

HUGE = 2 << 20
LOOPS = [(streams, ahead) for streams in (1, 2, 4, 8) for ahead in (0, 1024, 4096, 8192)]
CHOOSING, CHOICES = 0.03, 3  # seconds of a turn, and turns of each loop, when one is chosen


class Probe:
    """Readers that sleep between measurements. Needs a C compiler; there can be one in a process.

    threads: each pinned to a CPU of its own. Each measurement counts `seconds`, after a pass over
    `mebibytes` of memory, more than caches hold, that is not counted.
    """

    def __init__(self, threads: int, mebibytes: int = 512, seconds: float = 0.25) -> None:
        cpus = sorted(os.sched_getaffinity(0))
        if threads > len(cpus):
            raise SystemExit(f"{threads} pinned threads need as many CPUs; there are {len(cpus)}.")
        self._library = _compile()
        error = self._library.probe_start(threads, (ctypes.c_int * threads)(*cpus[:threads]))
        if error:
            raise OSError(error, os.strerror(error))
        self.memory, self._seconds = huge_pages(mebibytes << 20), seconds
        self.memory[:] = 1
        rates = dict.fromkeys(LOOPS, 0.0)
        for _ in range(CHOICES):
            for loop in LOOPS:
                rates[loop] = max(rates[loop], self._turn(self.memory, loop, CHOOSING))
        self.loop = max(LOOPS, key=rates.__getitem__)

    def measure(self) -> float:
        """Bytes read per second, in GB/s."""
        return self._turn(self.memory, self.loop, self._seconds)

    def read(self, memory: NDArray[np.uint8], seconds: float) -> float:
        """The same over other memory, which starts at a multiple of 64 bytes."""
        return self._turn(memory, self.loop, seconds)

    def _turn(self, memory: NDArray[np.uint8], loop: tuple[int, int], seconds: float) -> float:
        rate = self._library.probe_read(memory.ctypes.data, memory.nbytes, *loop, seconds)
        return float(rate) / 1e9


def huge_pages(size: int) -> NDArray[np.uint8]:
    """`size` bytes in huge pages, where the system gives them."""
    mapping = mmap.mmap(-1, size + HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    mapping.madvise(mmap.MADV_HUGEPAGE)
    flat = np.frombuffer(mapping, np.uint8)
    start = -flat.ctypes.data % HUGE
    return flat[start : start + size]


def _compile() -> ctypes.CDLL:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "probe.so"
        source = Path(__file__).with_suffix(".c")
        subprocess.run(["cc", "-O3", "-march=native", "-shared", "-fPIC", "-pthread", str(source),
                        "-o", str(path)], check=True)  # fmt: skip
        library = ctypes.CDLL(str(path))
    library.probe_read.restype = ctypes.c_double
    library.probe_read.argtypes = (
        ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_double,
    )  # fmt: skip
    return library


if __name__ == "__main__":
    probe = Probe(int(sys.argv[1]) if len(sys.argv) > 1 else 2)
    print(" ".join(f"{probe.measure():.1f}" for _ in range(10)), "GB/s,",
          "{} streams a thread, prefetching {} bytes".format(*probe.loop))  # fmt: skip
