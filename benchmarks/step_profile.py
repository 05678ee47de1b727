"""What a decode step spends outside of kernels, by `graphwright bench --profile`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

__all__ = ["step_profile"]

TOKENS = 48
RUNS = 3


def step_profile(artifact: Path, name: str, prompt: int, threads: int) -> dict[str, Any]:
    """RUNS processes: the median share outside, all shares, and the milliseconds of a step."""
    found = []
    for _ in range(RUNS):
        command = [sys.executable, "-m", "graphwright", "bench", artifact, "--profile", "--json",
                   "--prompt-len", prompt, "--gen-len", TOKENS, "--threads", threads]  # fmt: skip
        text = subprocess.run(
            [str(each) for each in command], check=True, text=True, stdout=subprocess.PIPE
        ).stdout
        found.append(json.loads(text)["decode"])
    return {
        "name": name, "steps": found[0]["steps"], "outside": median(f["outside"] for f in found),
        "all_outside": [f["outside"] for f in found],
        "step_ms": median(1e3 * f["step_s"] for f in found),
    }  # fmt: skip
