"""Embeddings that change with the length of the sequence, settled for the longest one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import tiny_model

from graphwright.frontend.capture import capture_module
from graphwright.frontend.settled_buffers import settled_buffers
from graphwright.ir.errors import FrontendError
from graphwright.ir.interpreter import run_program
from graphwright.ir.tolerance import check_close

LONG = {
    "rope_type": "longrope",
    "factor": 4.0,
    "original_max_position_embeddings": 32,
    "rope_theta": 10000.0,
    "short_factor": [1.0 + 0.1 * i for i in range(8)],
    "long_factor": [2.0 + i for i in range(8)],
}
DYNAMIC = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}
CASES: dict[str, tuple[dict[str, Any], int | None, int]] = {
    "longrope, beyond the original length": (LONG, None, 40),
    "longrope, within the original length": (LONG, 32, 20),
    "dynamic, within the original length": (DYNAMIC, None, 40),
}


@pytest.mark.parametrize("name", CASES)
def test_the_trace_is_that_of_the_compiled_context(name: str) -> None:
    rope, context, length = CASES[name]
    check_trace(tiny_model("llama", rope_parameters=rope), context, length)


@pytest.mark.parametrize("name", CASES)
def test_layers_of_one_kind_alone_may_scale(name: str) -> None:
    """One embedding serves all kinds of layers, and its forward must be told which."""
    rope, context, length = CASES[name]
    fixed = {"rope_type": "default", "rope_theta": 10000.0}
    kinds = {"sliding_attention": fixed, "full_attention": rope}
    check_trace(tiny_model("gemma3", rope_parameters=kinds), context, length)


def test_embeddings_of_models_with_experts_are_settled_too() -> None:
    """The run that looks for loops over experts, without values, must leave nothing behind."""
    rope = LONG | {"original_max_position_embeddings": 256}
    check_trace(tiny_model("qwen3-moe", rope_parameters=rope), None, 40)


def check_trace(model: torch.nn.Module, context: int | None, length: int) -> None:
    program = capture_module(model, max_context=context)
    assert program.info.max_context == (context or 256)
    tokens, positions = torch.arange(length) % 128, torch.arange(length)
    with torch.no_grad():
        wanted = model(tokens[None], use_cache=False).logits[0]
    check_close(run_program(program, {"tokens": tokens, "positions": positions}), wanted)


def test_a_model_is_left_as_it_was() -> None:
    model = tiny_model("llama", rope_parameters=LONG)
    rotary: Any = model.get_submodule("model.rotary_emb")
    before = rotary.inv_freq.clone()
    with settled_buffers(model, 256) as settled:
        assert not torch.equal(rotary.inv_freq, before)
        assert torch.equal(settled["model.rotary_emb.inv_freq"], rotary.inv_freq)
        assert "forward" in vars(rotary)
    assert torch.equal(rotary.inv_freq, before)
    assert "forward" not in vars(rotary)


def test_fixed_embeddings_are_left_alone() -> None:
    model = tiny_model("llama")
    with settled_buffers(model, 256) as settled:
        assert settled == {}
        assert "forward" not in vars(model.get_submodule("model.rotary_emb"))


def test_a_context_beyond_the_models_is_refused() -> None:
    with pytest.raises(FrontendError, match="takes at most 256 tokens, not 300"):
        capture_module(tiny_model("llama"), max_context=300)
