"""C sources to object files, and those to a shared library, with whatever compiler there is."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from graphwright.ir.errors import BackendError

__all__ = ["compile_source", "describe_compiler", "find_linker", "link"]

# -Bsymbolic: an entry calls the kernels of its own library, whatever else the process has loaded.
_LINKED = ("-shared", "-Wl,-Bsymbolic", "-s", "-pthread")
_COMPILED = ("-c", "-O2", "-fPIC", "-fvisibility=hidden", "-pthread")


def find_linker(triple: str | None = None) -> list[str]:
    """The command of a C compiler driver that links for `triple` (None: this machine).

    cc, gcc or clang where they are installed, else the `ziglang` wheel, which also links for other
    machines. Raises BackendError when there is none.
    """
    if triple is None:
        for name in ("cc", "gcc", "clang"):
            found = shutil.which(name)
            if found:
                return [found]
    elif found := shutil.which(f"{triple}-gcc"):
        return [found]
    if find_spec("ziglang"):
        return [sys.executable, "-m", "ziglang", "cc", *(("-target", triple) if triple else ())]
    wanted = f"for {triple}" if triple else "(cc, gcc or clang)"
    raise BackendError(
        f"no linker {wanted} was found; install a C compiler or `pip install ziglang`."
    )


def link(parts: Sequence[Path], library: Path, triple: str | None = None) -> None:
    """Writes the shared library of `parts`, object files. Raises BackendError with the linker's
    words."""
    build_id = () if "ziglang" in (command := find_linker(triple)) else ("-Wl,--build-id=none",)
    _run("linking", [*command, *_LINKED, *build_id, "-o", str(library), *map(str, parts), "-lm"])


def compile_source(
    source: Path, file: Path, triple: str | None = None, macros: Mapping[str, str] | None = None
) -> None:
    """Writes the object `file` of a C source, with `macros` defined. Raises BackendError with the
    compiler's words."""
    defined = [f"-D{name}={text}" for name, text in (macros or {}).items()]
    command = [*find_linker(triple), *_COMPILED, *defined, "-o", str(file), str(source)]
    _run(f"compiling {source.name}", command)


def describe_compiler(triple: str | None = None) -> tuple[object, ...]:
    """Equal as long as `compile_source` makes the same of the same source."""
    command = find_linker(triple)
    if "ziglang" in command:
        return *command[1:], version("ziglang"), _COMPILED
    state = os.stat(command[0])  # of what the name stands for
    return *command, state.st_size, state.st_mtime_ns, _COMPILED


def _run(what: str, command: list[str]) -> None:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        words = (result.stderr or result.stdout).strip()[-2000:]
        raise BackendError(f"{what} failed: `{' '.join(command)}` said:\n{words}")
