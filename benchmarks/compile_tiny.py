"""Seconds of compiling the tiny models of tests/tiny_models.py, nothing kept from before.

    python benchmarks/compile_tiny.py                          # all of them, once each
    python benchmarks/compile_tiny.py gemma3 gpt-oss --runs 3  # the best of three
    python benchmarks/compile_tiny.py llama gpt2 --layers 4 32 # how time grows with the layers

Every compile has a process of its own. What is timed begins after its imports, of the model's
class too, and ends when the artifact is written. With several numbers of layers, or runs, the
processes alternate.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

__all__: list[str] = []

TESTS = Path(__file__).resolve().parents[1] / "tests"
STAGES = {
    "capture": ("capture",), "passes and checks": ("passes", "golden"),
    "native code": ("native code",), "write": ("write",),
}  # fmt: skip


def main() -> None:
    """Prints a table: seconds in all, and of each stage, of the fastest run."""
    parser = argparse.ArgumentParser(description="Seconds of compiling tiny models.")
    parser.add_argument("models", nargs="*", help="names of tests/tiny_models.py (default: all)")
    parser.add_argument("--layers", type=int, nargs="+", default=[2])
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--quant", default="f32")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(_compile(arguments.models[0], arguments.layers[0], arguments.quant)))
        return
    names = arguments.models or _all_names()
    print("| model | layers | all | " + " | ".join(STAGES) + " | slowest |", flush=True)
    print("|---" * (len(STAGES) + 4) + "|", flush=True)
    for name in names:
        runs: dict[int, list[dict[str, float]]] = {layers: [] for layers in arguments.layers}
        for _ in range(arguments.runs):
            for layers, found in runs.items():
                found.append(_in_a_process(name, layers, arguments.quant))
        for layers, found in runs.items():
            print(_row(name, layers, found), flush=True)


def _all_names() -> list[str]:
    sys.path.insert(0, str(TESTS))
    from tiny_models import MORE_MODELS, TINY_MODELS

    return [*TINY_MODELS, *MORE_MODELS]


def _in_a_process(name: str, layers: int, quant: str) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as cache:
        done = subprocess.run(
            [sys.executable, __file__, name, "--layers", str(layers), "--quant", quant, "--child"],
            text=True, capture_output=True, env=os.environ | {"GRAPHWRIGHT_CACHE": cache},
        )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"compiling {name} with {layers} layers failed:\n{done.stderr}")
    seconds: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return seconds


def _compile(name: str, layers: int, quant: str) -> dict[str, float]:
    """Seconds of each stage, and in all."""
    sys.path.insert(0, str(TESTS))
    from tiny_models import save_tiny

    import graphwright
    from graphwright.machine_code import code_generator

    code_generator("host", "auto", tuned=False)  # imports the backend
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = save_tiny(name, Path(folder) / "checkpoint", num_layers=layers)
        start = time.perf_counter()
        compiled = graphwright.compile(checkpoint, quant=quant)
        compiled.save(Path(folder) / "model.gw")
        return {"all": time.perf_counter() - start, **compiled.seconds}


def _row(name: str, layers: int, runs: list[dict[str, float]]) -> str:
    best = min(runs, key=lambda run: run["all"])
    stages = [sum(best[stage] for stage in parts) for parts in STAGES.values()]
    cells = [name, str(layers), *(f"{value:.1f}" for value in (best["all"], *stages))]
    slowest = f"{max(run['all'] for run in runs):.1f}" if len(runs) > 1 else ""
    return f"| {' | '.join([*cells, slowest])} |"


if __name__ == "__main__":
    main()
