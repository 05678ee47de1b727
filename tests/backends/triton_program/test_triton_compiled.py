"""Whole models by compiled code, without a GPU: every launch of a step as its PTX, on numpy."""

from __future__ import annotations

from functools import partial
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
