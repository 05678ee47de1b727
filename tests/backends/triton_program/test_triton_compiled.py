"""Whole models by compiled code, without a GPU: every launch of a step as its PTX, on numpy."""

from __future__ import annotations

from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_decoders import tiny_decoder
from tiny_models import random_tokens, round_weights, tiny_model

pytest.importorskip("triton")

from interpreted_program import InterpretedProgram
from ptx_harness import run_launch
from test_short_convolutions import hybrid_of_transformers
from test_triton_models import planned

from graphwright.backends.triton.build import GpuOptions, lower_program
from graphwright.backends.triton.kernels.kernel import Size
from graphwright.backends.triton.launches import Launch

# Of the logits' standard deviation, as on a GPU (tests/gpu): what rounding to these types makes.
ERROR = {"f32": 2e-4, "bf16": 0.25, "f16": 0.03}
RECURRENT = {"qwen3_next", "mamba2"}


@pytest.mark.parametrize(
    ("name", "recipe", "dtype", "capability"),
    [
        ("llama", "w8", "bf16", 90),
        ("qwen3-moe", "f32", "f16", 80),
        ("lfm2", "f32", "f16", 80),
        ("llama", "w4g32", "bf16", 80),
        ("qwen3_next", "f32", "f32", 80),
        ("mamba2", "w8", "bf16", 90),
        ("deepseek-v3", "f32", "f16", 90),
        pytest.param("llama", "f32", "f32", 80, marks=pytest.mark.slow),
        pytest.param("gemma2", "f32", "f16", 80, marks=pytest.mark.slow),
        pytest.param("gpt2", "f32", "f16", 80, marks=pytest.mark.slow),
        pytest.param("qwen3", "w4g32z", "f16", 90, marks=pytest.mark.slow),
        pytest.param("gpt-oss", "f32", "f16", 80, marks=pytest.mark.slow),
        pytest.param("bloom", "f32", "f16", 80, marks=pytest.mark.slow),
    ],
)
def test_compiled_models_against_eager(name: str, recipe: str, dtype: str, capability: int) -> None:
    """A prompt, a token, and a batch of two sequences."""
    model: Any
    if name == "lfm2":
        model = hybrid_of_transformers()
    else:
        model = (tiny_decoder if name in RECURRENT else tiny_model)(name)
    program = planned(model, recipe)
    if recipe != "f32":
        round_weights(model, recipe)
    lowered = lower_program(program, GpuOptions(dtype))
    compiled = InterpretedProgram(lowered, run=partial(run_launch, capability=capability))
    texts = [random_tokens(12, seed=seed).tolist() for seed in range(2)]
    with torch.no_grad():
        wants = [model(torch.tensor([text]), use_cache=False).logits[0] for text in texts]
    for sequences in (((0, 0, 9),), ((0, 9, 10),), ((1, 0, 3), (0, 10, 11))):
        got = compiled.step([(i, texts[i][start:end]) for i, start, end in sequences])
        want = torch.cat([wants[i][start:end] for i, start, end in sequences])
        error = (got - want).abs().amax() / wants[0].std()
        print(name, recipe, dtype, float(error))
        assert error <= ERROR[dtype]


def test_nothing_is_read_early_that_the_launch_in_front_writes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of the code of benchmarks/gpu/dependent.py, which has places in the cache computed first of
    all: here they are computed right in front of a product that reads them.
    """
    monkeypatch.syspath_prepend(str(Path(__file__).parents[3] / "benchmarks" / "gpu"))
    waits = import_module("waits")
    front: list[tuple[str, set[int]]] = []
    early: list[tuple[str, str, set[int]]] = []

    def run(launch: Launch, size: Size, pointers: list[torch.Tensor]) -> None:
        own = waits.early_of(launch.kernel.name)
        change = partial(waits.waiting, trigger=True, early=own)
        memory = run_launch(launch, size, pointers, 90, change, own)
        if front:
            name, written = front[-1]
            early.append((name, launch.kernel.name, written & memory.read_early))
        assert memory.read_early or not launch.kernel.name.startswith(("few_rows", "decode_att"))
        front.append((launch.kernel.name, memory.written))

    compiled = InterpretedProgram(
        lower_program(planned("llama", "w4g32"), GpuOptions("bf16")), run=run
    )
    compiled.step([(0, [5])])
    compiled.step([(0, [7])])
    found = [(name.split("_")[0], behind.split("_")[0]) for name, behind, both in early if both]
    assert found == [("token", "few")] * 2
