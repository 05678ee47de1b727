"""The number of threads: asked for, from the environment, or from the machine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from graphwright.runtime import threads
from graphwright.runtime.errors import RequestError


def test_the_environment_and_the_argument(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(threads.VARIABLE, "3")
    assert threads.choose_threads() == 3
    assert threads.choose_threads(5) == 5
    monkeypatch.setenv(threads.VARIABLE, "many")
    with pytest.raises(RequestError, match="not 'many'"):
        threads.choose_threads()


def test_affinity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(threads.AFFINITY_VARIABLE, raising=False)
    assert not threads.choose_affinity() and threads.choose_affinity("pinned")
    monkeypatch.setenv(threads.AFFINITY_VARIABLE, "pinned")
    assert threads.choose_affinity() and not threads.choose_affinity("free")
    with pytest.raises(RequestError, match="not 'cores'"):
        threads.choose_affinity("cores")


def test_siblings_count_once_and_a_quota_limits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(threads.VARIABLE, raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3, 9})
    for cpu in range(4):
        folder = tmp_path / f"cpu{cpu}/topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(f"{cpu % 2},{cpu % 2 + 2}\n")
    monkeypatch.setattr(threads, "_TOPOLOGY", tmp_path)
    monkeypatch.setattr(threads, "_QUOTA", tmp_path / "cpu.max")
    assert threads.choose_threads() == 3  # two cores with two threads each, one CPU unknown
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert threads.choose_threads() == 3
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    assert threads.choose_threads() == 2
