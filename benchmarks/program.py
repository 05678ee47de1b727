"""What a full run measures: which runtimes of each shape do what, and how often. Data only.

A full run covers every target in 20 to 25 minutes: what takes long is measured where a target asks
for it. Anything else can be asked for on the command line.
"""

from __future__ import annotations

__all__ = ["FULL_RUN", "LARGEST", "MAIN", "PEERS", "QUANTS", "ROUNDS", "SCENARIOS", "scenarios_of"]

LARGEST = "tinyllama-1.1b"

# Our schemes. Three float32 models of 1.1B at once, of 4.4 GB each, say nothing that small do not.
QUANTS = {
    "tinyllama-1.1b": ["w4g32", "w4g128", "w8", "f16", "bf16"],
    "smollm2-135m": ["w4g32", "w4g128", "w8", "f16", "bf16", "f32"],
    "stories15m": ["w4g32", "w8", "bf16", "f32"],
    "mamba-790m": ["w4g32", "w8", "f16"],
    "qwen3.5-0.8b": ["w4g32", "w8", "f16"],
}
# Peers, or formats of them. torch.compile takes minutes for 30 layers: it has the smallest shape.
_INTEGERS = ["llama.cpp", "ort", "openvino", "ctranslate2"]
PEERS = {
    "tinyllama-1.1b": [*_INTEGERS, "transformers:eager-bf16"],
    "smollm2-135m": [
        *_INTEGERS,
        "transformers:eager-bf16",
        "transformers:eager-f32",
    ],
    "stories15m": [*_INTEGERS, "transformers:eager-f32", "transformers:compile-f32"],
    "mamba-790m": ["llama.cpp", "transformers:eager-bf16"],
    "qwen3.5-0.8b": ["llama.cpp", "transformers:eager-bf16"],
}
# A full run has these shapes; the others, which are recurrent, are asked for.
FULL_RUN = ["tinyllama-1.1b", "smollm2-135m", "stories15m"]
# Where others would take minutes and no target asks: who takes part in these.
MAIN = {"w4g32", "w8", "Q4_0", "Q8_0"}

# Rounds of each scenario. Spreads of 10 % within a run ask for no more.
ROUNDS = {"decode": 7, "prefill": 2, "batch": 4, "contention": 4, "context": 4, "first-token": 4}
SCENARIOS = (*ROUNDS, "compile", "profile")


def scenarios_of(shape: str, bits: int) -> tuple[str, ...]:
    """Those that loaded models of a shape and about `bits` bits take part in, in a full run."""
    if shape == LARGEST and bits <= 8:
        return ("decode", "prefill", "batch", "contention")
    return ("decode",)
