"""Settings for all tests: two processes share two cores, so nobody may spin."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TRITON_INTERPRET", "1")  # for kernels; cubins have a process apart

import pytest
import torch

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
