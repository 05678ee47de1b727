"""What adapters cost: python benchmarks/adapters.py SHAPE [--quant w8] [--rank 16] [--rounds 5]

The shape without adapters, with some and none chosen, with one chosen, and several sequences with
one each, in turns in one process: decoding, and prompts. Makes adapters of random factors for all
linears of the layers.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from models import MODELS, artifact, checkpoint
from safetensors.torch import save_file
from shapes import SHAPES

from graphwright import SamplingParams
from graphwright.runtime.engine import Engine

__all__ = ["make_adapter"]

SEQUENCES = 4


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("shape", choices=sorted(SHAPES))
    parser.add_argument("--quant", default="w8")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=24, help="of each answer")
    parser.add_argument("--prompt", type=int, default=256, help="tokens of a prompt")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, help="default: the cores")
    options = parser.parse_args()
    named = [
        f"--adapter=a{n}={make_adapter(checkpoint(options.shape), options.rank, n)}"
        for n in range(SEQUENCES)
    ]
    plain = artifact(options.shape, options.quant, ("--quant", options.quant))
    name = f"{options.quant}-{SEQUENCES}-adapters-{options.rank}"
    adapted = artifact(options.shape, name, ("--quant", options.quant, *named))
    engines = [
        Engine(path, max_sequences=SEQUENCES, context=1024, threads=options.threads)
        for path in (plain, adapted)
    ]
    several = [f"a{n}" for n in range(SEQUENCES)]
    runs: dict[str, Callable[[], tuple[float, float]]] = {
        "without adapters": lambda: rates(engines[0], options, [None]),
        "none chosen": lambda: rates(engines[1], options, [None]),
        "one chosen": lambda: rates(engines[1], options, ["a0"]),
        f"{SEQUENCES} without adapters": lambda: rates(engines[0], options, [None] * SEQUENCES),
        f"{SEQUENCES} with one each": lambda: rates(engines[1], options, several),
    }  # fmt: skip
    plan = engines[1].plan
    share = plan.adapter_bytes_per_token / plan.weight_bytes_per_token
    print(f"an adapter is {share:.1%} of the bytes that a token with one reads")
    table(runs, options.rounds)


def rates(
    engine: Engine, options: argparse.Namespace, names: list[str | None]
) -> tuple[float, float]:
    """Tokens a second of prompts and of decoding, all sequences together."""
    random = np.random.default_rng(0)
    prompts = [random.integers(0, 1000, options.prompt).tolist() for _ in names]
    params = SamplingParams(temperature=0, max_tokens=options.tokens, ignore_eos=True)
    start, seen = time.perf_counter(), 0.0
    requests = [engine.submit(p, params, adapter=n) for p, n in zip(prompts, names, strict=True)]
    while not all(each.finished for each in requests):
        engine.step()
        if not seen and all(each.generated for each in requests):
            seen, had = time.perf_counter(), sum(len(each.generated) for each in requests)
    end = time.perf_counter()
    return (
        options.prompt * len(names) / (seen - start),
        (options.tokens * len(names) - had) / (end - seen),
    )


def table(runs: dict[str, Callable[[], tuple[float, float]]], rounds: int) -> None:
    """Medians, and the medians of ratios to the first of as many sequences in the same round."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for turn in range(rounds + 1):
        for name, run in runs.items():
            rate = run()
            if turn:
                found[name].append(rate)
    print(f"{'':26}{'prompt tok/s':>14}{'ratio':>8}{'decode tok/s':>14}{'ratio':>8}")
    for name, each in found.items():
        first = found[f"{SEQUENCES} without adapters" if name[0].isdigit() else "without adapters"]
        cells = ""
        for kind in range(2):
            ratio = statistics.median(a[kind] / b[kind] for a, b in zip(each, first, strict=True))
            cells += f"{statistics.median(a[kind] for a in each):14,.1f}{ratio:8.3f}"
        print(f"{name:26}{cells}")


def make_adapter(base: Path, rank: int, seed: int) -> Path:
    """A directory as PEFT writes it, for all linears of the layers of a llama; kept if there is
    one. Factors are bfloat16."""
    folder = MODELS / f"{base.name}-adapter-{rank}-{seed}"
    if (folder / "adapter_config.json").is_file():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    index = json.loads((base / "model.safetensors.index.json").read_text())["weight_map"]
    names = [key.removesuffix(".weight") for key in index if key.endswith("_proj.weight")]
    generator = torch.Generator().manual_seed(seed)
    config = json.loads((base / "config.json").read_text())
    tensors = {}
    for name in names:
        outputs, inputs = _sizes(config, name.rpartition(".")[2])
        for letter, sizes in (("A", (rank, inputs)), ("B", (outputs, rank))):
            values = torch.randn(sizes, generator=generator) * 0.02
            key = f"base_model.model.{name}.lora_{letter}.weight"
            tensors[key] = values.to(torch.bfloat16)
    save_file(tensors, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder


def _sizes(config: dict[str, int], projection: str) -> tuple[int, int]:
    """[outputs, inputs] of a projection of a llama."""
    hidden, inner, heads = (
        config[key] for key in ("hidden_size", "intermediate_size", "num_attention_heads")
    )
    keys = hidden // heads * config["num_key_value_heads"]
    return {
        "q_proj": (hidden, hidden), "k_proj": (keys, hidden), "v_proj": (keys, hidden),
        "o_proj": (hidden, hidden), "gate_proj": (inner, hidden), "up_proj": (inner, hidden),
        "down_proj": (hidden, inner),
    }[projection]  # fmt: skip


if __name__ == "__main__":
    main()
