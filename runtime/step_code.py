"""A step library loaded into this process, and the pool of threads that runs its entries.

The other side is backends/tvm/step_pool.c. Two engines have a pool each; a forked child's pool
starts its threads anew at the first step.
"""

from __future__ import annotations

import ctypes
import os
import weakref
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from graphwright.runtime.errors import RequestError

__all__ = ["StepCode", "StepPool"]

_SPINS_IN_STEP = 2000  # of some 20 ns, until a thread that waits for the others sleeps
_SPINS_BETWEEN = 10000  # and one that waits for the next step: longer than sampling takes
_FAILURES = {
    -2: "another thread is running a step of this engine",
    -3: "the threads of this forked process could not be started",
}


class StepCode:
    """The functions of the library at `path`. Raises OSError when it does not load, AttributeError
    when it lacks a function."""

    def __init__(self, path: Path, entries: Sequence[str] = ("decode", "prefill")) -> None:
        self.library = ctypes.CDLL(str(path))
        self.entries = {
            name: ctypes.cast(getattr(self.library, name), ctypes.c_void_p) for name in entries
        }
        pointer, number = ctypes.c_void_p, ctypes.c_int32
        for name, result, arguments in (
            ("gw_create", pointer, (number, ctypes.c_size_t, number, number, number, number)),
            ("gw_run", number, (pointer, pointer, pointer, pointer)),
            ("gw_pin", number, (pointer, number, number)),
            ("gw_destroy", None, (pointer,)),
        ):
            function = getattr(self.library, name)
            function.restype, function.argtypes = result, arguments

    def mark(self, marks: NDArray[np.int64] | None) -> None:
        """See NativeLibrary.mark. Raises AttributeError."""
        set_marks = self.library.gw_clock
        set_marks.restype, set_marks.argtypes = None, (ctypes.c_void_p, ctypes.c_int32)
        set_marks(*((None, 0) if marks is None else (marks.ctypes.data, marks.shape[1])))


class StepPool:
    """`threads` threads for the steps of one engine, the one that calls `run` among them.

    own_bytes, alone_rows: the memory of each thread in steps of so few tokens. rows: the most that
    a step samples. pin: keep worker i on the i-th CPU this process may use; the calling thread
    stays free. phases: the most of any entry that runs here, where other libraries' will (None: the
    entries are those of `code`).
    Raises RequestError when the system gives no more threads.
    """

    def __init__(
        self, code: StepCode, threads: int, *, own_bytes: int, alone_rows: int, rows: int,
        pin: bool = False, phases: int | None = None,
    ) -> None:  # fmt: skip
        cpus = sorted(os.sched_getaffinity(0))
        room = threads <= len(cpus)  # else the thread waited for may need this one's CPU
        spins = (_SPINS_IN_STEP, _SPINS_BETWEEN) if room else (0, 0)
        library = code.library
        given = (threads, own_bytes, alone_rows, rows, *spins)
        pool = library.gw_create(*given) if phases is None else _create_for(library, phases, *given)
        if not pool:
            raise RequestError(f"cannot start {threads} threads for the steps; ask for fewer.")
        self._run, self._code = library.gw_run, code
        self._pool = ctypes.c_void_p(pool)
        self.close = weakref.finalize(self, library.gw_destroy, pool)
        self.close.atexit = False  # a thread may still be in a step when the program ends
        if pin:
            for number in range(1, threads):
                library.gw_pin(self._pool, number, cpus[number % len(cpus)])

    def run(
        self, entry: str, pointers: ctypes.Array[ctypes.c_void_p],
        chosen: ctypes.c_void_p | None = None, code: StepCode | None = None,
    ) -> None:  # fmt: skip
        """One step of `entry` on the pointers of its parameters. Raises RuntimeError.

        code: the library that it is of, if not the pool's own.
        chosen: the address of an int32 for each sampled row, that is to become the id of its
        largest logit, the lowest of equal ones; -1 where a logit is NaN.
        """
        status = self._run(self._pool, (code or self._code).entries[entry], pointers, chosen)
        if status:
            why = _FAILURES.get(status, f"it returned {status}")
            raise RuntimeError(f"the compiled step '{entry}' failed: {why}.")


def _create_for(library: ctypes.CDLL, phases: int, *given: int) -> int | None:
    create = library.gw_create_for
    number = ctypes.c_int32
    create.restype = ctypes.c_void_p
    create.argtypes = (number, number, ctypes.c_size_t, number, number, number, number)
    pool: int | None = create(phases, *given)
    return pool
