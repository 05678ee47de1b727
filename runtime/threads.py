"""How many threads a step should run on, and whether they stay on their CPUs."""

from __future__ import annotations

import os
from pathlib import Path

from graphwright.runtime.errors import RequestError

__all__ = ["AFFINITIES", "AFFINITY_VARIABLE", "VARIABLE", "choose_affinity", "choose_threads"]

VARIABLE = "GRAPHWRIGHT_NUM_THREADS"
AFFINITY_VARIABLE = "GRAPHWRIGHT_AFFINITY"
AFFINITIES = ("free", "pinned")
_TOPOLOGY = Path("/sys/devices/system/cpu")
_QUOTA = Path("/sys/fs/cgroup/cpu.max")
_MOST = 512


def choose_threads(asked: int | None = None) -> int:
    """`asked`, else GRAPHWRIGHT_NUM_THREADS, else the physical cores this process may use.

    A container's CPU quota counts. Raises RequestError for a number that makes no sense.
    """
    text = os.environ.get(VARIABLE)
    if asked is None and text:
        if not text.isdigit():
            raise RequestError(f"{VARIABLE} must be a number of threads, not '{text}'.")
        asked = int(text)
    if asked is None:
        return _available()
    if not 1 <= asked <= _MOST:
        raise RequestError(f"the number of threads must be from 1 to {_MOST}, not {asked}.")
    return asked


def choose_affinity(asked: str | None = None) -> bool:
    """Whether to pin the worker threads: `asked`, else GRAPHWRIGHT_AFFINITY, else they are free.

    Pinned threads cannot leave a CPU that another process needs too: only for machines that have
    nothing else to do. The calling thread is the program's and is never pinned. Raises RequestError
    for a word that is neither "free" nor "pinned".
    """
    word = asked or os.environ.get(AFFINITY_VARIABLE) or "free"
    if word not in AFFINITIES:
        raise RequestError(f"the affinity of threads is free or pinned, not '{word}'.")
    return word == "pinned"


def _available() -> int:
    cores = {_core(cpu) for cpu in os.sched_getaffinity(0)}
    return max(1, min(len(cores), _quota() or len(cores)))


def _core(cpu: int) -> str:
    """The CPUs that share a core with `cpu`, as the system writes them; itself when unknown."""
    try:
        return (_TOPOLOGY / f"cpu{cpu}/topology/thread_siblings_list").read_text()
    except OSError:
        return str(cpu)


def _quota() -> int | None:
    try:
        quota, period = _QUOTA.read_text().split()
        return None if quota == "max" else max(1, -(-int(quota) // int(period)))
    except (OSError, ValueError):
        return None
