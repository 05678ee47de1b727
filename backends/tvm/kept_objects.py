"""Object files kept on disk from one compile to the next: most kernels of a model are those of the
model before it, or of the same model in another scheme.

Where an object lies is the SHA-256 of all that makes it. A file starts with the digest of the rest,
so that one that was cut off or changed is made again. Nothing here is needed: where the folder
cannot be read or written, everything is compiled.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import tvm
from tvm_ffi import structural_hash

from graphwright.backends.tvm.kernels.kernel import Kernel
from graphwright.backends.tvm.link import describe_compiler
from graphwright.backends.tvm.target import Cpu
from graphwright.runtime.user_cache import cache_folder

__all__ = ["KeptObjects", "key_of_kernel", "key_of_source"]

_MOST = 256 * 2**20  # bytes; when there are more, the half that was not asked for longest goes
_DIGEST = 32  # bytes of a SHA-256


class KeptObjects:
    """The objects in `folder`, which is made when something is put there."""

    def __init__(self, folder: Path, most: int = _MOST) -> None:
        self._folder, self._most, self._added = folder, most, False

    @staticmethod
    def of_user() -> KeptObjects | None:
        """Those of whoever runs this process, None where they have no place for such things."""
        try:
            return KeptObjects(cache_folder() / "objects")
        except RuntimeError:  # no home directory
            return None

    def take(self, key: str, file: Path) -> bool:
        """Writes the object of `key` to `file`, if it is kept and whole. Is it?"""
        kept = self._folder / f"{key}.o"
        try:
            content = kept.read_bytes()
        except OSError:
            return False
        if hashlib.sha256(content[_DIGEST:]).digest() != content[:_DIGEST]:
            return False
        with suppress(OSError):  # the folder may be somebody else's
            os.utime(kept)
        file.write_bytes(content[_DIGEST:])
        return True

    def keep(self, key: str, file: Path) -> None:
        """Keeps a copy of `file`. Threads and processes may do that at once."""
        content = file.read_bytes()
        with suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True)
            temporary = self._folder / f"{key}.{os.getpid()}"
            temporary.write_bytes(hashlib.sha256(content).digest() + content)
            temporary.replace(self._folder / f"{key}.o")
            self._added = True

    def trim(self) -> None:
        """Removes what was not asked for longest, where much was added."""
        if not self._added:
            return
        with suppress(OSError):
            with os.scandir(self._folder) as entries:
                found = sorted((e.stat().st_mtime_ns, e.stat().st_size, e.path) for e in entries)
            left = sum(size for _, size, _ in found)
            if left <= self._most:
                return
            for _, size, path in found:
                if left <= self._most // 2:
                    return
                with suppress(FileNotFoundError):  # another process removes them as well
                    os.remove(path)
                left -= size


def key_of_kernel(kernel: Kernel, cpu: Cpu) -> str:
    """What makes a kernel's object: its function, the code that lowers it, TVM, and the CPU."""
    function = structural_hash(kernel.func, map_free_vars=True)
    return _digest(kernel.name, function, cpu.mcpu, cpu.mattr, cpu.mtriple, _generator())


def key_of_source(source: Path, triple: str | None, macros: Mapping[str, str] | None) -> str:
    """What makes a C source's object: its text, the macros, and the compiler."""
    return _digest(source.read_bytes(), sorted((macros or {}).items()), describe_compiler(triple))


def _digest(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()


@functools.cache
def _generator() -> tuple[object, ...]:
    """This TVM, and our own code that makes kernels and lowers them."""
    libraries = sorted((Path(tvm.__file__).parent / "lib").glob("libtvm*"))
    states = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in libraries]
    folder = Path(__file__).parent
    sources = hashlib.sha256()
    for file in (folder / "emit.py", *sorted((folder / "kernels").glob("*.py"))):
        sources.update(file.read_bytes())
    return tvm.__version__, states, sources.hexdigest()
