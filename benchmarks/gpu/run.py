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
from concurrent.futures import ThreadPoolExecutor
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
    parser.add_argument("--skeletons", type=Path, help="artifacts without weights: skeleton.py")
    parser.add_argument("--recipes", default=",".join(RECIPES))
    parser.add_argument("--no-transformers", action="store_true", help="ours alone")
    parser.add_argument("--output", type=Path, help="JSON of every figure")
    options = parser.parse_args()
    import torch

    if not torch.cuda.is_available():
        print("make bench-gpu needs an NVIDIA GPU and a torch with CUDA; there is none here.")
        return 1
    rows: list[dict[str, Any]] = []
    for shape in options.shape or ["tinyllama-1.1b"]:
        folder = options.folder / shape
        folder.mkdir(parents=True, exist_ok=True)
        paths = prepared(shape, options.recipes.split(","), folder, options.skeletons)
        rows += [measure(shape, quant, path) for quant, path in paths.items()]
        if not options.no_transformers:
            rows.append(measure_transformers(shape))
        if options.output:
            options.output.write_text(json.dumps(rows, indent=1))
    head, _, _ = PAGE.read_text().partition(MARK)
    PAGE.write_text(f"{head}{MARK}\n\n{page(rows)}")
    print(page(rows))
    return 0


def prepared(
    shape: str, recipes: list[str], folder: Path, skeletons: Path | None
) -> dict[str, Path]:
    """An artifact for each recipe: compiled here, or one compiled elsewhere, with its weights."""
    from make_checkpoint import make_checkpoint
    from skeleton import fill

    if skeletons is None:
        checkpoint = make_checkpoint(shape, folder / "checkpoint")
        return {quant: compiled(checkpoint, quant) for quant in recipes}
    given = {quant: skeletons / f"{shape}-{quant}.gw" for quant in recipes}
    with ThreadPoolExecutor() as threads:
        made = {
            quant: threads.submit(fill, path, folder / path.name)
            for quant, path in given.items()
            if path.is_file()
        }
    if not made:
        raise SystemExit(
            f"{skeletons} has none of {', '.join(str(each) for each in given.values())}"
        )
    return {quant: each.result() for quant, each in made.items()}


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


def measure(shape: str, quant: str, path: Path) -> dict[str, Any]:
    """One row; probes are taken before and after."""
    from kernels import graph_seconds, kernel_table
    from measure import copy_bandwidth, decode_seconds, matmul_rate, prefill_seconds

    from graphwright.runtime.artifact import Artifact
    from graphwright.runtime.cuda.library import CudaLibrary
    from graphwright.runtime.engine import Engine

    first = subprocess.run(
        [sys.executable, "-c", FIRST_TOKEN, str(path)], capture_output=True, text=True, check=True
    )  # fmt: skip
    rate, before = matmul_rate(), copy_bandwidth()  # the products wake the chip's clocks
    artifact = Artifact.open(path, verify=False)
    library = CudaLibrary(artifact)
    engine = Engine(artifact, library=library, max_sequences=64, context=2048 + 128)
    plan, row = engine.plan, {"shape": shape, "who": f"graphwright {quant}"}
    row |= {"copy": before, "matmul": rate, "first token": float(first.stdout)}
    for sequences in (1, 16, 64):
        row[f"decode {sequences}"] = decode_seconds(engine, sequences, 1024)
    bucket = library.program.bucket("decode", 1, 1)
    decode_seconds(engine, 1, 1024)  # what the launches below work on
    step = graph_seconds(library, (*bucket.launches, *bucket.largest))
    copy = max(before, copy_bandwidth())
    row |= {
        "share of copy": plan.weight_bytes_per_token / row["decode 1"] / copy,
        "outside the graph": row["decode 1"] - step,
        "launches of a step": len(bucket.launches) + len(bucket.largest),
        "kernels of decode 1": kernel_table(library, bucket),
        "prefill 2048": prefill_seconds(engine, 2048),
        "kernels of prefill": kernel_table(library, library.program.entries["prefill"][-1]),
        "copy after": copy_bandwidth(),
    }
    del engine
    for name in ("arena", "weights", "kv", "logits"):
        library.driver.free(library.regions[name])
    print(json.dumps({k: v for k, v in row.items() if not k.startswith("kernels")}), flush=True)
    return row


FIRST_TOKEN = """
import sys, time
start = time.perf_counter()
from graphwright.runtime.artifact import Artifact
from graphwright.runtime.engine import Engine
from graphwright.runtime.sampling_params import SamplingParams
engine = Engine(Artifact.open(sys.argv[1], verify=False), context=2048)
engine.generate([[1 + i % 1000 for i in range(128)]], SamplingParams(temperature=0.0, max_tokens=1))
print(time.perf_counter() - start)
"""


def measure_transformers(shape: str) -> dict[str, Any]:
    """The row of transformers, and of torch's own attention."""
    import torch
    from measure import copy_bandwidth, eager_decoder, sdpa_seconds, seconds_of

    row: dict[str, Any] = {
        "shape": shape,
        "who": "transformers bf16, static cache, reduce-overhead",
    }
    row |= {"copy": copy_bandwidth(), "attention of 2048": sdpa_seconds(shape)}
    for sequences in (1, 16):
        row[f"decode {sequences}"] = seconds_of(eager_decoder(shape, sequences, 1024, 1088))
        torch.cuda.empty_cache()
        print(json.dumps(row), flush=True)
    return row


def page(rows: list[dict[str, Any]]) -> str:
    """The table with what it was measured on."""
    import torch

    machine = f"{torch.cuda.get_device_name()}, {platform.processor() or platform.machine()}"
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "triton", "transformers"))
    given = {k for row in rows for k in row if not k.startswith("kernels")}
    names = ["shape", "who", *sorted(given - {"shape", "who"})]
    lines = [f"{time.strftime('%Y-%m-%d')}, {machine}, {versions}. Seconds; bytes/s; operations/s.",
             "", f"| {' | '.join(names)} |", f"|{'---|' * len(names)}"]  # fmt: skip
    for row in rows:
        cells = (row.get(name, "") for name in names)
        texts = (f"{each:.4g}" if isinstance(each, float) else str(each) for each in cells)
        lines.append(f"| {' | '.join(texts)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
