"""Whole models lowered for a GPU, run by Triton's interpreter, against eager token by token."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import random_tokens, tiny_model

from graphwright.frontend.capture import capture_module
from graphwright.ir.tolerance import check_close
from graphwright.passes.base import run_passes
from graphwright.passes.pipeline import PipelineOptions, pipeline
from graphwright.passes.recipe import Recipe

pytest.importorskip("triton")

from interpreted_program import InterpretedProgram

from graphwright.backends.triton.build import GpuOptions, LoweredProgram, lower_program
from graphwright.backends.triton.chips import CHIPS

MODELS = [
    "llama",
    "qwen2",
    "mistral",
    "gpt2",
    "gemma2",
    "opt",
    "falcon",
    "falcon-old",
    "bloom",
    "mixtral",
    "gpt-oss",
    "deepseek-v3",
]


def lowered_model(
    name: str, recipe: str = "f32", options: GpuOptions | None = None
) -> tuple[Any, LoweredProgram]:
    """(a tiny model, what it was lowered to)."""
    model = tiny_model(name)
    program = capture_module(model)
    run_passes(program, pipeline(PipelineOptions(Recipe.parse(recipe), decode_tokens=4, chunk=24)))
    return model, lower_program(program, CHIPS[0], options or GpuOptions("f32"))


@pytest.mark.parametrize("name", MODELS)
def test_prefill_decode_and_a_ragged_batch_equal_eager(name: str) -> None:
    model, lowered = lowered_model(name)
    texts = [random_tokens(24, seed=seed).tolist() for seed in range(3)]
    with torch.no_grad():
        wants = [model(torch.tensor([text]), use_cache=False).logits[0] for text in texts]
    program = InterpretedProgram(lowered)
    check_close(program.step([(0, texts[0][:13])]), wants[0][:13])
    for at in range(13, 17):
        check_close(program.step([(0, [texts[0][at]])]), wants[0][at : at + 1])
    got = program.step([(1, texts[1][:1]), (0, texts[0][17:18]), (2, texts[2][:9])])
    check_close(got, torch.cat([wants[1][:1], wants[0][17:18], wants[2][:9]]))
    got = program.step([(2, texts[2][9:10]), (1, texts[1][1:3])], rows=[0, 2])
    check_close(got, torch.stack([wants[2][9], wants[1][2]]))
