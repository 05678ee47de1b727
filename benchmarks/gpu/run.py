"""make bench-gpu: decode and prefill on this machine's GPU, into docs/performance-gpu.md.

Random weights of real shapes. Needs torch with CUDA beside graphwright (the probes and transformers
use it; our artifact does not). Nothing is written when there is no GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "benchmarks" / "gpu")]
PAGE = ROOT / "docs" / "performance-gpu.md"
MARK = "<!-- make bench-gpu writes below -->"
RECIPES = ("bf16", "w8", "w4g128")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", action="append", help="of benchmarks/shapes.py")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "gpu")
    options = parser.parse_args()
    import torch

    if not torch.cuda.is_available():
        print("make bench-gpu needs an NVIDIA GPU and a torch with CUDA; there is none here.")
        return 1
    rows = [
        row
        for shape in options.shape or ["tinyllama-1.1b"]
        for row in measure(shape, options.folder / shape)
    ]
    head, _, _ = PAGE.read_text().partition(MARK)
    PAGE.write_text(f"{head}{MARK}\n\n{page(rows)}")
    print(json.dumps(rows, indent=1))
    return 0


def compiled(checkpoint: Path, quant: str) -> Path:
    """An artifact, by a process of its own, for the GPU of this machine."""
    from graphwright.runtime.cuda.driver import Driver

    path = checkpoint.parent / f"{quant}.gw"
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    target = f"cuda:sm_{Driver().capability() // 10}0"
    subprocess.run(
        [sys.executable, "-m", "graphwright", "compile", str(checkpoint), "-o", str(path),
         "--quant", quant, "--target", target, "--chunk", "2048", "--no-check", "--quiet"],
        check=True, env=environment,
    )  # fmt: skip
    return path


def measure(shape: str, folder: Path) -> list[dict[str, Any]]:
    """One row for each recipe, and one for transformers; probes are taken before and after each."""
    import torch
    from make_checkpoint import make_checkpoint
    from measure import (
        copy_bandwidth,
        decode_seconds,
        eager_decoder,
        matmul_rate,
        prefill_seconds,
        seconds_of,
    )

    from graphwright.runtime.artifact import Artifact
    from graphwright.runtime.engine import Engine

    checkpoint = make_checkpoint(shape, folder / "checkpoint")
    rows: list[dict[str, Any]] = []
    for quant in RECIPES:
        path = compiled(checkpoint, quant)
        before, rate = copy_bandwidth(), matmul_rate()
        start = time.perf_counter()
        engine = Engine(Artifact.open(path, verify=False), max_sequences=64, context=2048 + 128)
        engine.generate([[1] * 128])
        first = time.perf_counter() - start
        plan = engine.plan
        one, sixteen, many = (decode_seconds(engine, n, 1024) for n in (1, 16, 64))
        rows.append(
            {
                "shape": shape, "who": f"graphwright {quant}", "copy": before, "matmul": rate,
                "copy after": copy_bandwidth(), "first token": first, "decode 1": one,
                "decode 16": sixteen, "decode 64": many,
                "share of copy": plan.weight_bytes_per_token / one / before,
                "prefill 2048": prefill_seconds(engine, 2048),
            }
        )  # fmt: skip
        del engine
    steps = {n: seconds_of(eager_decoder(str(checkpoint), n, 2176)) for n in (1, 16)}
    rows.append(
        {"shape": shape, "who": "transformers bf16, static cache, reduce-overhead",
         "copy": copy_bandwidth(), "decode 1": steps[1], "decode 16": steps[16]}
    )  # fmt: skip
    torch.cuda.empty_cache()
    return rows


def page(rows: list[dict[str, Any]]) -> str:
    """The table with what it was measured on."""
    import torch

    machine = f"{torch.cuda.get_device_name()}, {platform.processor() or platform.machine()}"
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "triton", "transformers"))
    names = ["shape", "who", *sorted({k for row in rows for k in row} - {"shape", "who"})]
    lines = [f"{time.strftime('%Y-%m-%d')}, {machine}, {versions}. Seconds; bytes/s; operations/s.",
             "", f"| {' | '.join(names)} |", f"|{'---|' * len(names)}"]  # fmt: skip
    for row in rows:
        cells = (row.get(name, "") for name in names)
        texts = (f"{each:.4g}" if isinstance(each, float) else str(each) for each in cells)
        lines.append(f"| {' | '.join(texts)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
