"""Which files were verified already: hashing a gigabyte takes longer than loading it.

A file counts as the one that was verified while device, inode, size, and both times of change are
what they were. The time of the inode's change cannot be set by programs, so that whoever writes to
the file is noticed; what decays on the disk without being written is not. `graphwright verify`
looks at every byte again.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from contextlib import suppress
from pathlib import Path

from graphwright.runtime.user_cache import cache_folder

__all__ = ["is_verified", "remember_verified"]

_SETTLED = 2 * 10**9  # ns; a file written since may be written again within the clock's resolution


def is_verified(path: Path, state: os.stat_result, digest: str) -> bool:
    """Was this very file, whose entries have this structure digest, verified before?"""
    try:
        found = json.loads(_record(path).read_text())
    except (OSError, ValueError, RuntimeError):  # not there, not ours, or no home directory
        return False
    return bool(found == _identity(state, digest))


def remember_verified(path: Path, state: os.stat_result, digest: str) -> None:
    """Notes that the open file `state` was verified. Where nothing can be kept, nothing is."""
    if time.time_ns() - max(state.st_mtime_ns, state.st_ctime_ns) < _SETTLED:
        return
    with suppress(OSError, RuntimeError):
        record = _record(path)
        record.parent.mkdir(parents=True, exist_ok=True)
        temporary = record.with_suffix(f".{os.getpid()}")
        temporary.write_text(json.dumps(_identity(state, digest)))
        temporary.replace(record)


def _record(path: Path) -> Path:
    name = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:32]
    return cache_folder() / "verified" / f"{name}.json"


def _identity(state: os.stat_result, digest: str) -> list[int | str]:
    return [
        state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns, digest,
    ]  # fmt: skip
