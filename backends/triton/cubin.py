"""From a kernel to machine code for a chip, on a machine that needs no GPU."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, TypeAlias

from graphwright.backends.triton.chips import Chip
from graphwright.backends.triton.kernels.kernel import DTYPES, TritonKernel
from graphwright.ir.errors import BackendError

__all__ = ["Cubin", "Source", "compile_cubin", "compile_cubins", "cuobjdump", "in_turn",
           "triton_code"]  # fmt: skip

ALIGNMENT = 16  # bytes: what the widest load of a thread needs


@dataclass(frozen=True)
class Cubin:
    """Machine code and what a launch needs: threads are 32 * warps, shared is dynamic memory.

    After the kernel's pointers a launch passes `scratch_pointers` null pointers. registers, and
    stack (bytes that a thread spills), are what ptxas says. early: a launch may begin before
    those in front of it have ended, as the code waits for them itself (kernels/early.py).
    """

    code: bytes
    symbol: str
    warps: int
    shared: int
    scratch_pointers: int
    registers: int
    stack: int
    early: bool


# aligned pointers: those that are multiples of ALIGNMENT at every launch
Source: TypeAlias = tuple[TritonKernel, Chip, frozenset[str]]


def compile_cubin(kernel: TritonKernel, chip: Chip, aligned: frozenset[str]) -> Cubin:
    """`kernel` for `chip`; aligned as in Source. Raises BackendError as compile_cubins."""
    return compile_cubins([(kernel, chip, aligned)], 1)[0]


def compile_cubins(sources: Sequence[Source], threads: int) -> list[Cubin]:
    """Kernels for chips, so many at once: the same code as one after the other, as LLVM and ptxas,
    which take most of the time, work without Python's lock.

    Raises BackendError when Triton was imported for interpreting, for a kernel that Triton does not
    compile, and for one that needs more shared memory than the chip has or memory of its own.
    """
    import triton

    with _reproducible(triton), ThreadPoolExecutor(max(1, min(threads, len(sources)))) as pool:
        made = [pool.submit(_compile, *each) for each in sources]
        try:
            return [each.result() for each in made]
        except BackendError:
            pool.shutdown(cancel_futures=True)
            raise


def _compile(kernel: TritonKernel, chip: Chip, aligned: frozenset[str]) -> Cubin:
    compiled = triton_code(kernel, chip, aligned)
    found = compiled.metadata
    if found.shared > chip.shared:
        raise BackendError(
            f"'{kernel.name}' needs {found.shared} bytes of shared memory; {chip.name} gives "
            f"{chip.shared} to a block."
        )
    if found.global_scratch_size or found.profile_scratch_size:
        raise BackendError(f"'{kernel.name}' needs scratch memory of its own, which none is given.")
    code = compiled.asm["cubin"]
    ptx = compiled.asm["ptx"]
    registers, stack = _usage(code)
    return Cubin(
        code, found.name, kernel.num_warps, found.shared,
        _parameters(ptx, found.name) - len(kernel.pointers), registers, stack,
        early="griddepcontrol.wait" in ptx,
    )  # fmt: skip


def triton_code(kernel: TritonKernel, chip: Chip, aligned: frozenset[str]) -> Any:
    """What Triton makes of a kernel: its stages of code, `asm`, and `metadata`.

    Raises BackendError as compile_cubins.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    if type(kernel.function).__name__ != "JITFunction":
        raise BackendError(
            f"kernel '{kernel.name}' was imported for interpreting: unset TRITON_INTERPRET to "
            "compile it."
        )
    names, types = list(kernel.function.arg_names), dict(kernel.pointers)
    constants = dict(kernel.constants)
    if "EARLY" in constants:
        constants["EARLY"] = chip.early
    source = ASTSource(
        fn=kernel.function,
        signature={n: f"*{DTYPES[types[n]]}" if n in types else "constexpr" for n in names},
        constexprs={(names.index(n),): value for n, value in constants.items()},
        attrs={(i,): [["tt.divisibility", ALIGNMENT]] for i, n in enumerate(names) if n in aligned},
    )
    options = {
        "num_warps": kernel.num_warps,
        "num_stages": kernel.num_stages,
        "enable_fp_fusion": kernel.fused,
        "maxnreg": kernel.most_registers or None,
    }
    try:
        return triton.compile(source, target=GPUTarget("cuda", chip.arch, 32), options=options)
    except Exception as error:
        raise BackendError(
            f"Triton does not compile '{kernel.name}' for {chip.name}: {error}"
        ) from error


_CACHE: list[tempfile.TemporaryDirectory[str]] = []


@contextmanager
def _reproducible(triton: Any) -> Iterator[None]:
    """Code without the places of source files in it, and Triton's cache where it is removed: for
    all threads, so that one of them must do this. Kernels are parsed in turn: in CPython 3.11
    ast.parse fails where that of another thread comes in between (gh-106905).
    """
    if not _CACHE:
        _CACHE.append(tempfile.TemporaryDirectory(prefix="graphwright-triton-"))
    parsing = in_turn(triton.runtime.jit.JITCallable, "parse")
    with triton.knobs.compilation.scope(), triton.knobs.cache.scope(), parsing:
        triton.knobs.compilation.disable_line_info = True
        triton.knobs.cache.dir = os.environ.get("TRITON_CACHE_DIR", _CACHE[0].name)
        yield


@contextmanager
def in_turn(owner: type, method: str) -> Iterator[None]:
    """While open, threads that call this method of any object wait for each other."""
    lock, call = Lock(), getattr(owner, method)

    def waiting(*arguments: Any) -> Any:
        with lock:
            return call(*arguments)

    setattr(owner, method, waiting)
    try:
        yield
    finally:
        setattr(owner, method, call)


def _parameters(ptx: str, symbol: str) -> int:
    """How many parameters the entry has."""
    _, _, rest = ptx.partition(f".entry {symbol}(")
    return rest.partition(")")[0].count(".param ")


def _usage(code: bytes) -> tuple[int, int]:
    """(registers, bytes of stack) of each thread."""
    found = dict(re.findall(r"(REG|STACK):(\d+)", cuobjdump(code, "-res-usage")))
    return int(found["REG"]), int(found["STACK"])


def cuobjdump(code: bytes, option: str) -> str:
    """What NVIDIA's tool, which Triton brings, prints of a cubin for -res-usage, -sass, …"""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(code)
        file.flush()
        return subprocess.run(
            [tool, option, file.name], capture_output=True, text=True, check=True
        ).stdout
