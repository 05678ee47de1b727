"""Object files, made on threads: LLVM works on one function while the next is still written down.

Each kernel is a module of its own, so that its object file depends on nothing else, neither on the
other kernels nor on which thread was free: equal programs give equal libraries. TVM's LLVM keeps
all its state in the module, and the calls into it leave Python's lock to other threads.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from tvm.ir import IRModule

from graphwright.backends.tvm.emit import emit_kernels
from graphwright.backends.tvm.kernels.kernel import Kernel
from graphwright.backends.tvm.kernels.pipeline import lower_module, write_object
from graphwright.backends.tvm.link import compile_source
from graphwright.backends.tvm.target import Cpu
from graphwright.ir.errors import BackendError

__all__ = ["Objects"]


class Objects:
    """Object files in `folder`, for `cpu`. A context manager: leaving it ends the threads.

    What is added is compiled meanwhile; `files` waits for it.
    """

    def __init__(self, folder: Path, cpu: Cpu) -> None:
        self._folder, self._cpu = folder, cpu
        self._workers = ThreadPoolExecutor(len(os.sched_getaffinity(0)))
        self._made: dict[str, Future[Path]] = {}

    def __enter__(self) -> Objects:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._workers.shutdown(cancel_futures=True)

    def add_module(self, name: str, module: IRModule) -> None:
        """The functions of `module`, under a name for `files` and for errors.

        Raises BackendError where TVM's own passes refuse them; `files` does where LLVM does.
        """

        with self._named(name):  # here, since threads in Python would only delay each other
            lowered = lower_module(module, self._cpu)

        def work(file: Path) -> None:
            with self._named(name):
                write_object(lowered, self._cpu, file)

        self._add(name, work)

    def add_kernel(self, kernel: Kernel) -> None:
        """One kernel, as a function that C code could call by its name."""
        if kernel.name not in self._made:  # kernels_of compares those of one name
            self.add_module(kernel.name, emit_kernels([kernel]))

    def add_source(self, source: Path, macros: Mapping[str, str] | None = None) -> None:
        """A C source, called by the name of its file."""
        self._add(source.name, lambda file: compile_source(source, file, self._cpu.mtriple, macros))

    def files(self, names: Iterable[str]) -> list[Path]:
        """The objects of these names, in this order. Raises the BackendError of the first that
        failed."""
        return [self._made[name].result() for name in names]

    def _add(self, name: str, work: Callable[[Path], None]) -> None:
        file = self._folder / f"{len(self._made)}.o"

        def run() -> Path:
            work(file)
            return file

        self._made[name] = self._workers.submit(run)

    @contextmanager
    def _named(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # TVM's are of many types
            words = (str(error).strip() or type(error).__name__).splitlines()[-1]
            raise BackendError(
                f"'{name}' cannot be compiled for {self._cpu.name}: {words}"
            ) from error
