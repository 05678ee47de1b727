"""A file is hashed once, and again as soon as anything about it may have changed."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from toy_model import write_toy

from graphwright.runtime import artifact as module
from graphwright.runtime import verified
from graphwright.runtime.artifact import Artifact
from graphwright.runtime.errors import ArtifactError


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[int]:
    """Grows by one for each file whose entries are hashed."""
    monkeypatch.setenv("GRAPHWRIGHT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(verified, "_SETTLED", 0)
    calls: list[int] = []
    original = module._hash_all

    def counted(parts: list[Any]) -> list[str]:
        calls.append(len(parts))
        return original(parts)

    monkeypatch.setattr(module, "_hash_all", counted)
    return calls


def test_a_file_is_hashed_once(tmp_path: Path, hashed: list[int]) -> None:
    path = write_toy(tmp_path / "m.gw")
    for _ in range(3):
        Artifact.open(path)
    assert len(hashed) == 1
    Artifact.open(path, again=True)
    assert len(hashed) == 2
    Artifact.open(shutil.copy(path, tmp_path / "copy.gw"))
    assert len(hashed) == 3


def test_a_changed_file_is_hashed_again(tmp_path: Path, hashed: list[int]) -> None:
    path = write_toy(tmp_path / "m.gw")
    Artifact.open(path)
    time.sleep(0.02)  # the clock of file times ticks every few milliseconds
    with path.open("r+b") as file:
        file.seek(Artifact.open(path)._layout["weights.bin"].offset)
        file.write(b"\xff")
    with pytest.raises(ArtifactError, match=r"the sha256 of 'weights.bin' is"):
        Artifact.open(path)
    assert len(hashed) == 2


def test_a_file_written_just_now_is_not_noted(
    tmp_path: Path, hashed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verified, "_SETTLED", 10**12)
    path = write_toy(tmp_path / "m.gw")
    for _ in range(2):
        Artifact.open(path)
    assert len(hashed) == 2


@pytest.mark.parametrize("content", [None, "{", "[1, 2]"])
def test_a_cache_that_is_none_changes_nothing(
    tmp_path: Path, hashed: list[int], content: str | None
) -> None:
    path = write_toy(tmp_path / "m.gw")
    if content is None:
        (tmp_path / "cache").write_text("a file, no folder")
    else:
        Artifact.open(path)
        (record,) = (tmp_path / "cache/verified").iterdir()
        record.write_text(content)
    Artifact.open(path)
    assert hashed == [len(Artifact.open(path).manifest.entries)] * len(hashed) and len(hashed) >= 2
