"""How fast this machine reads memory now: what a step that is bound by its weights can reach.

libc's memchr, looking for a byte that is not there, is a read-only loop of vector loads; it runs
without the interpreter's lock, one thread on each of the first CPUs that this process may use.
"""

from __future__ import annotations

import ctypes
import os
import time
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import numpy as np
from numpy.typing import NDArray

__all__ = ["read_bandwidth"]


def read_bandwidth(threads: int, *, mebibytes: int = 256, seconds: float = 0.3) -> float:
    """Bytes that `threads` pinned threads read together per second, in GB/s, over about `seconds`.

    `mebibytes` of memory are allocated, more than caches hold.
    """
    memory = np.zeros(mebibytes << 20, np.uint8)
    memory[::4096] = 0  # zeros that were never written are one page, read from the cache
    shares = np.array_split(memory, threads)
    cpus = sorted(os.sched_getaffinity(0))
    start = Barrier(threads)
    with ThreadPoolExecutor(threads) as pool:
        jobs = [
            pool.submit(_read, share, cpus[number % len(cpus)], seconds, start)
            for number, share in enumerate(shares)
        ]
        return sum(job.result() for job in jobs) / 1e9


def _read(share: NDArray[np.uint8], cpu: int, seconds: float, start: Barrier) -> float:
    """Bytes per second of one thread, which is kept on `cpu` and ends with this."""
    os.sched_setaffinity(0, {cpu})
    memchr = ctypes.CDLL(None).memchr
    memchr.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t)
    memchr.restype = ctypes.c_void_p
    address, size, passes = share.ctypes.data, share.nbytes, 0
    memchr(address, 1, size)
    start.wait()
    begin = time.perf_counter()
    while time.perf_counter() - begin < seconds:
        memchr(address, 1, size)
        passes += 1
    return passes * size / (time.perf_counter() - begin)
