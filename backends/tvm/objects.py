"""Object files, made on threads: LLVM works on one function while the next is still written down.

Each kernel is a module of its own, so that its object file depends on nothing else, neither on the
other kernels nor on which thread was free: equal programs give equal libraries. TVM's LLVM keeps
all its state in the module, and the calls into it leave Python's lock to other threads. What was
compiled before is taken from `kept_objects.py`.
"""

from __future__ import annotations

import heapq
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from graphwright.backends.tvm.emit import emit_kernels
from graphwright.backends.tvm.kept_objects import KeptObjects, key_of_kernel, key_of_source
from graphwright.backends.tvm.kernels.kernel import Kernel
from graphwright.backends.tvm.kernels.pipeline import lower_module, write_object
from graphwright.backends.tvm.link import compile_source
from graphwright.backends.tvm.target import Cpu
from graphwright.ir.errors import BackendError

__all__ = ["Objects"]


class Objects:
    """Object files in `folder`, for `cpu`. A context manager: leaving it ends the threads.

    What is added is compiled meanwhile, unless it is among the `kept`; `files` waits for it.
    """

    def __init__(self, folder: Path, cpu: Cpu, kept: KeptObjects | None = None) -> None:
        self._folder, self._cpu, self._kept = folder, cpu, kept
        self._workers = ThreadPoolExecutor(len(os.sched_getaffinity(0)))
        self._made: dict[str, Future[Path]] = {}
        self._waiting: list[tuple[float, int, Callable[[], None]]] = []  # a heap

    def __enter__(self) -> Objects:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._workers.shutdown(cancel_futures=True)
        if self._kept is not None:
            self._kept.trim()

    def add_kernel(self, kernel: Kernel) -> None:
        """One kernel, as a function that C code could call by its name.

        Raises BackendError where TVM's own passes refuse it; `files` does where LLVM does.
        """
        name, cpu = kernel.name, self._cpu
        if name in self._made:  # kernels_of compares those of one name
            return

        def begin() -> Callable[[Path], None]:
            with self._named(name):  # here, since threads in Python would only delay each other
                lowered = lower_module(emit_kernels([kernel]), cpu)

            def work(file: Path) -> None:
                with self._named(name):
                    write_object(lowered, cpu, file)

            return work

        self._add(name, key_of_kernel(kernel, cpu), begin)

    def add_source(self, source: Path, macros: Mapping[str, str] | None = None) -> None:
        """A C source, called by the name of its file."""
        triple = self._cpu.mtriple
        self._add(
            source.name,
            key_of_source(source, triple, macros),
            lambda: lambda file: compile_source(source, file, triple, macros),
            first=True,
        )

    def files(self, names: Iterable[str]) -> list[Path]:
        """The objects of these names, in this order. Raises the BackendError of the first that
        failed."""
        return [self._made[name].result() for name in names]

    def _add(
        self, name: str, key: str, begin: Callable[[], Callable[[Path], None]], first: bool = False
    ) -> None:
        file = self._folder / f"{len(self._made)}.o"
        kept = self._kept
        if kept is not None and kept.take(key, file):
            self._made[name] = Future()
            self._made[name].set_result(file)
            return
        start = time.perf_counter()
        work = begin()
        made: Future[Path] = Future()

        def run() -> None:
            try:
                work(file)
                if kept is not None:
                    kept.keep(key, file)
                made.set_result(file)
            except BaseException as error:  # noqa: BLE001  (whoever asks for the file gets it)
                made.set_exception(error)

        # What took longest to lower takes LLVM longest, and goes before others: as the last one
        # it would keep one thread busy while the rest has nothing left to do.
        urgency = math.inf if first else time.perf_counter() - start
        heapq.heappush(self._waiting, (-urgency, len(self._made), run))
        self._made[name] = made
        self._workers.submit(self._run_next)

    def _run_next(self) -> None:
        _, _, run = heapq.heappop(self._waiting)
        run()

    @contextmanager
    def _named(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # TVM's are of many types
            words = (str(error).strip() or type(error).__name__).splitlines()[-1]
            raise BackendError(
                f"'{name}' cannot be compiled for {self._cpu.name}: {words}"
            ) from error
