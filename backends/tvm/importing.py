"""The first import of tvm, in a third of its time."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

__all__ = ["default_environment", "import_tvm"]

_AUTOLOAD = "TVM_DEVICE_BACKEND_AUTOLOAD"


def import_tvm() -> None:
    """Imports tvm without its GPU backends, and with the libraries that it looks for.

    While tvm 0.27 is imported it looks up objects and operators that are not there: those of
    disco, whose library nobody has loaded, and those of GPU backends. Each is an error that tvm
    catches, but the first error of a process reads the debug tables of every library in it, for
    its traceback: about a second beside torch. Here there are none of either. Nothing happens when
    tvm is imported already, or is not installed; whoever set TVM_DEVICE_BACKEND_AUTOLOAD is heard.
    """
    spec = None if "tvm" in sys.modules else find_spec("tvm")
    if spec is None or spec.origin is None:
        return
    import tvm_ffi  # noqa: F401  the libraries below need its own

    for name, mode in (("libtvm_runtime.so", ctypes.RTLD_GLOBAL),
                       ("libtvm_runtime_extra.so", ctypes.RTLD_LOCAL)):  # fmt: skip
        file = Path(spec.origin).parent / "lib" / name
        if file.is_file() and "TVM_LIBRARY_PATH" not in os.environ:
            ctypes.CDLL(str(file), mode)
    with default_environment(_AUTOLOAD, "0"):
        import tvm  # noqa: F401


@contextmanager
def default_environment(name: str, value: str) -> Iterator[None]:
    """`name` is `value` meanwhile, unless it was set."""
    if name in os.environ:
        yield
        return
    os.environ[name] = value
    try:
        yield
    finally:
        del os.environ[name]
