"""The tour: compile the demo model twice, look inside, let it write.   make demo"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
MODEL = HERE / "demo-model"
BUILD = HERE.parent / "build" / "demo"
PROMPT = "Once upon a time, there was a little"


def graphwright(*arguments: object, quiet: bool = False) -> str:
    """Runs the command line as a user would, showing the command; returns what it printed."""
    words = [str(argument) for argument in arguments]
    if not quiet:
        shown = [f"'{word}'" if " " in word else word for word in words]
        print(f"\n\033[1m$ graphwright {' '.join(shown)}\033[0m", flush=True)
    command = [sys.executable, "-m", "graphwright", *words]
    result = subprocess.run(command, text=True, stdout=subprocess.PIPE if quiet else None)
    if result.returncode:
        sys.exit(result.returncode)
    return result.stdout or ""


def main() -> None:
    """Compile, inspect, generate, compare."""
    BUILD.mkdir(parents=True, exist_ok=True)
    model = MODEL.relative_to(Path.cwd()) if MODEL.is_relative_to(Path.cwd()) else MODEL
    build = BUILD.relative_to(Path.cwd()) if BUILD.is_relative_to(Path.cwd()) else BUILD
    artifacts = {quant: build / f"demo-{quant}.gw" for quant in ("f32", "w8")}
    for quant, path in artifacts.items():
        graphwright("compile", model, "--quant", quant, "-o", path)
    graphwright("inspect", artifacts["w8"], "--passes")
    graphwright("inspect", artifacts["w8"], "--memory")
    for path in artifacts.values():
        graphwright("run", path, "--prompt", PROMPT, "--max-tokens", 120)
    print("\nsize and speed, 64-token prompt, 64 tokens generated:")
    for quant, path in artifacts.items():
        text = graphwright("bench", path, "--prompt-len", 64, "--gen-len", 64, "--json", quiet=True)
        row = json.loads(text)
        print(
            f"  {quant:4} {row['artifact_mb']:6.1f} MB   first token after "
            f"{row['ttft_s'] * 1e3:5.1f} ms   prefill {row['prefill_tps']:8.0f} tokens/s   "
            f"decode {row['decode_tps']:7.0f} tokens/s"
        )
    print(
        f"""
go on with
  source .venv/bin/activate
  graphwright run {artifacts["w8"]} --prompt 'The dragon' --temperature 0.8 --seed 1
  graphwright serve {artifacts["w8"]}                     # the OpenAI API: docs/server.md
  graphwright inspect {artifacts["w8"]} --graph last      # the graph that became code
  graphwright compile PATH/TO/CHECKPOINT --quant w8       # your own model
  graphwright doctor                                      # what this machine has"""
    )


if __name__ == "__main__":
    main()
