"""What compiling costs: seconds, and the most private memory of the process and its children."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

from models import checkpoint

__all__ = ["compile_cost"]

INTERVAL = 0.05  # seconds between looks at the memory


def compile_cost(shape: str, quant: str) -> dict[str, Any]:
    """Compiles the checkpoint of `shape` once, with no kernel kept from before: seconds in all and
    by stage, peak private MB."""
    with tempfile.TemporaryDirectory(dir=checkpoint(shape).parent) as folder:
        process = subprocess.Popen(
            [sys.executable, "-m", "graphwright", "compile", str(checkpoint(shape)), "--quant",
             quant, "-o", f"{folder}/model.gw", "--json", "--quiet"],
            text=True, stdout=subprocess.PIPE,
            env=os.environ | {"GRAPHWRIGHT_CACHE": f"{folder}/cache"},
        )  # fmt: skip
        peak, done = [0], threading.Event()

        def watch() -> None:
            while not done.wait(INTERVAL):
                peak[0] = max(peak[0], sum(map(_anonymous_kb, _tree(process.pid))))

        watcher = threading.Thread(target=watch)
        watcher.start()
        text, _ = process.communicate()
        done.set()
        watcher.join()
    if process.returncode:
        raise SystemExit(f"compiling {shape} to {quant} failed.")
    result = json.loads(text)
    return {
        "shape": shape, "quant": quant, "seconds": result["seconds"], "stages": result["stages"],
        "peak_private_mb": round(peak[0] / 1024), "artifact_bytes": result["artifact_bytes"],
    }  # fmt: skip


def _tree(process: int) -> list[int]:
    """A process and all below it that still run."""
    found = [process]
    for task in Path(f"/proc/{process}/task").glob("*/children"):
        try:
            children = task.read_text().split()
        except OSError:  # the thread is gone
            continue
        for child in children:
            found += _tree(int(child))
    return found


def _anonymous_kb(process: int) -> int:
    """Private memory that is not a mapped file, in KiB; 0 when the process is gone."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("RssAnon")), 0)
