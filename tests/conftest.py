"""Settings for all tests: two processes share two cores, so nobody may spin."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TVM_BIND_THREADS", "0")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TRITON_INTERPRET", "1")  # for kernels; cubins have a process apart

import torch

torch.set_num_threads(1)
