"""The peers' own environments: one virtual environment each, since their pins contradict.

    python benchmarks/peers.py                 # makes all of them; llama.cpp is built from source

They lie in .venv-peers/ of the checkout, or under GRAPHWRIGHT_BENCH_PEERS.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

__all__ = ["ENVIRONMENTS", "PEERS", "Environment", "python_of"]

PEERS = Path(os.environ.get("GRAPHWRIGHT_BENCH_PEERS", Path(__file__).parents[1] / ".venv-peers"))
TORCH = "torch==2.13.0"  # the build for CPUs; installed first, so that nothing brings another


# GCC 12 takes a configuration of AMX's registers for eight bytes, and removes the stores of the
# others as dead: llama.cpp then ends with a general protection fault.
_KEEP_STORES = "-fno-tree-dse -fno-dse"


@dataclass(frozen=True)
class Environment:
    """`steps`: the packages of each `pip install`, in order; `variables`: its environment's."""

    folder: str
    steps: tuple[tuple[str, ...], ...]
    variables: tuple[tuple[str, str], ...] = ()


ENVIRONMENTS = {
    "llama.cpp": Environment(
        "llama",
        (("llama-cpp-python", "gguf", "numpy"),),
        (
            (
                "CMAKE_ARGS",
                f"-DCMAKE_C_FLAGS='{_KEEP_STORES}' -DCMAKE_CXX_FLAGS='{_KEEP_STORES}'",
            ),
        ),
    ),
    "ctranslate2": Environment("ct2", ((TORCH,), ("ctranslate2", "transformers"))),
    "ort": Environment(
        "ort", ((TORCH,), ("onnxruntime-genai", "onnxruntime", "onnx-ir", "onnx", "transformers"))
    ),
    "openvino": Environment(
        "openvino",
        (
            (TORCH,),
            # its torchvision would bring another torch
            ("--no-deps", "optimum-intel", "optimum"),
            (
                TORCH,
                "openvino",
                "openvino-genai",
                "openvino-tokenizers",
                "nncf",
                "transformers>=4.51,<5.6",
                "requests",
            ),
        ),
    ),
}


def python_of(name: str) -> Path:
    """The Python of a peer's environment, made when it is not there."""
    environment = ENVIRONMENTS[name]
    folder = PEERS / environment.folder
    python, stamp = folder / "bin" / "python", folder / ".installed"
    wanted = repr((environment.steps, environment.variables))
    if stamp.is_file() and stamp.read_text() == wanted:
        return python
    print(f"installing {name} into {folder} …", file=sys.stderr)
    if not python.is_file():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    for packages in environment.steps:
        subprocess.run(
            [python, "-m", "pip", "install", "-q", *packages], check=True,
            env=os.environ | dict(environment.variables),
        )  # fmt: skip
    stamp.write_text(wanted)
    return python


if __name__ == "__main__":
    for each in ENVIRONMENTS:
        print(each, python_of(each))
