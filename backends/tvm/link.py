"""Linking object files into a shared library, with whatever C compiler driver there is."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from graphwright.ir.errors import BackendError

__all__ = ["find_linker", "link"]

# -Bsymbolic: an entry calls the kernels of its own library, whatever else the process has loaded.
_FLAGS = ("-shared", "-Wl,-Bsymbolic", "-s")


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


def link(objects: Sequence[Path], library: Path, triple: str | None = None) -> None:
    """Writes the shared library of `objects`. Raises BackendError with the linker's words."""
    build_id = () if "ziglang" in (command := find_linker(triple)) else ("-Wl,--build-id=none",)
    command = [*command, *_FLAGS, *build_id, "-o", str(library), *map(str, objects), "-lm"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        words = (result.stderr or result.stdout).strip()[-2000:]
        raise BackendError(f"linking failed: `{' '.join(command)}` said:\n{words}")
