"""TVM's thread pool, made to have the size that was asked for and to leave CPU affinities alone.

Left to itself the pool takes half of the CPUs and binds the calling thread to one of them, which
every later thread and process inherits. It belongs to the thread that calls into TVM, so each such
thread sets up its own; once made it cannot grow, only use fewer of its workers.
"""

from __future__ import annotations

import os
from threading import get_ident
from typing import Any

__all__ = ["ThreadPool"]

_BIG_CORES = 1


class ThreadPool:
    """`threads` workers, the calling thread among them. TVM_BIND_THREADS=1 in the environment pins
    them to CPUs."""

    def __init__(self, ffi: Any, threads: int) -> None:
        os.environ.setdefault("TVM_BIND_THREADS", "0")
        self._threads = threads
        self._configure = ffi.get_global_func("runtime.config_threadpool")
        self._size = ffi.get_global_func("runtime.NumThreads")
        self._ready_in = 0

    def configure(self) -> None:
        """Sets up the pool of the calling thread, unless it was the last one to call."""
        if self._ready_in != get_ident():
            most = max(self._threads, len(os.sched_getaffinity(0)))
            os.environ["TVM_NUM_THREADS"] = str(most)  # read when the pool is made
            self._configure(_BIG_CORES, self._threads)
            self._ready_in = get_ident()

    def size(self) -> int:
        """Workers of the calling thread's pool: too few where somebody else had made it before."""
        return int(self._size())
