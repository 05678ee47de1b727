"""How a command's process begins to work and ends without paying for what it does not need."""

from __future__ import annotations

import atexit
import gc
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn

__all__ = ["leave", "without_collection"]


@contextmanager
def without_collection() -> Iterator[None]:
    """No search for garbage: what imports and passes make stays, and looking through it again and
    again takes a fifth of their time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def leave(code: int) -> NoReturn:
    """Ends the process with exit code `code`, as sys.exit in the main thread does, but leaves its
    memory to the system: to free object by object what torch and tvm made takes 2 seconds.

    Functions registered with atexit run, and output is written. While threads run that are no
    daemons, the process ends by sys.exit, which waits for them.
    """
    waited_for = [thread for thread in threading.enumerate() if not thread.daemon]
    if len(waited_for) > 1 or "torch" not in sys.modules:
        sys.exit(code)
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(BrokenPipeError):  # whoever reads our output has enough
            stream.flush()
    os._exit(code)
