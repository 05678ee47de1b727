"""Settings for all tests: two processes share two cores, so nobody may spin."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TRITON_INTERPRET", "1")  # for kernels; cubins have a process apart

import pytest
import torch

if TYPE_CHECKING:
    from artifact_entries import Entries

torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Nothing is noted in the cache of whoever runs the tests; processes share compiled kernels."""
    cache = tmp_path_factory.mktemp("cache")
    os.environ["GRAPHWRIGHT_CACHE"] = str(cache)
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = tmp_path_factory.getbasetemp().parent / "objects"
        shared.mkdir(exist_ok=True)
        (cache / "objects").symlink_to(shared)


@pytest.fixture(scope="session")
def artifact_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three layers in w8 for this machine's CPU, compiled once: for what looks into artifacts."""
    from tiny_models import tiny_model

    import graphwright

    path = tmp_path_factory.mktemp("inspected") / "tiny.gw"
    return graphwright.compile(tiny_model("llama", num_layers=3), quant="w8", check=True).save(path)


@pytest.fixture(scope="session")
def entries(artifact_path: Path) -> Entries:
    """What views read of it."""
    from artifact_entries import Entries

    from graphwright.runtime.artifact import Artifact

    return Entries.of(Artifact.open(artifact_path, any_cpu=True))
