"""Decoders under torch.compile: prefill, decode and generate as without."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from compiled_models import (
    WIDTH,
    Made,
    blocks,
    check_all_taken,
    check_same,
    fresh_dynamo,
    native,
    reports_of_test,
    rows,
    tokens,
)
from recurrent_decoders import recurrent_model
from tiny_models import MORE_MODELS, TINY_MODELS, tiny_model
from transformers import DynamicCache, StaticCache

from graphwright.torch_backend.backend import graphwright

fresh = pytest.fixture(autouse=True)(fresh_dynamo)
made = pytest.fixture(reports_of_test)


def test_torch_finds_the_backend_by_name() -> None:
    assert "graphwright" in torch._dynamo.list_backends(())
    assert torch._dynamo.lookup_backend("graphwright") is graphwright


def test_blocks_of_norms_and_products_run_in_one_part(made: Made) -> None:
    model, x = blocks(), rows(5, WIDTH)
    check_same(native(model, check=True)(x), model(x))
    check_all_taken(made())
    assert [report.parts for report in made()] == [1]
    assert made()[0].products == 4
    assert "with 100% of the weights that products read" in str(made()[0])


FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "gpt2": {},
    "gemma2": {"sliding_window": 4},
    "qwen3-moe": {},
    "deepseek-v3": {},
}


def check_decoding(compiled: Any, model: Any, given: torch.Tensor, steps: int) -> None:
    """A prompt and `steps` tokens after it, each on a growing cache of its own."""
    caches = [DynamicCache(config=model.config) for _ in range(2)]
    for _ in range(steps + 1):
        got = compiled(given, past_key_values=caches[0]).logits
        want = model(given, past_key_values=caches[1]).logits
        check_same(got, want)
        given = want[:, -1:].argmax(-1)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_decodes_on_its_cache(family: str, made: Made) -> None:
    """Prefill, of two shapes where that takes no long time, then a token at a time."""
    model = tiny_model(family, num_layers=1, **FAMILIES[family]).requires_grad_(False)
    compiled = native(model)
    shapes = [(2, 7, 0), (3, 5, 3)] if family == "llama" else [(3, 5, 3)]
    for batch, length, steps in shapes:
        check_decoding(compiled, model, tokens(batch, length), steps)
    check_all_taken(made())


def test_a_recurrent_model_decodes_on_its_cache(made: Made) -> None:
    """Its states stay with torch; products run in native parts."""
    model = recurrent_model("mamba", num_hidden_layers=1).requires_grad_(False)
    check_decoding(native(model), model, tokens(2, 5), 2)
    assert made() and all(report.weight_bytes_in_parts for report in made())


@pytest.mark.slow
@pytest.mark.parametrize("family", [*TINY_MODELS, *MORE_MODELS])
def test_every_family(family: str, made: Made) -> None:
    """Two shapes of a prompt, then a token at a time, with the numbers of each pass compared."""
    model = tiny_model(family).requires_grad_(False)
    compiled = native(model, check=True)
    for batch, length, steps in ((1, 9, 0), (2, 7, 3)):
        check_decoding(compiled, model, tokens(batch, length), steps)
    for report in made():
        assert report.weight_bytes_in_parts == report.weight_bytes, str(report)


def test_layers_that_are_alike_share_their_code(made: Made) -> None:
    """Of the parts between the attentions of four layers, two are of one kind."""
    model = tiny_model("llama", num_layers=4).requires_grad_(False)
    given = tokens(2, 6)
    check_same(native(model)(given, use_cache=False).logits, model(given, use_cache=False).logits)
    check_all_taken(made())
    assert [(report.parts, report.kinds) for report in made()] == [(5, 3)]


def test_generate_chooses_the_same_tokens(made: Made) -> None:
    model: Any = tiny_model("llama", num_layers=1)
    given = {"inputs": tokens(2, 7), "max_new_tokens": 9, "do_sample": False, "pad_token_id": 0}
    want = model.generate(**given)
    model.forward = native(model.forward)
    assert torch.equal(model.generate(**given), want)
    check_all_taken(made())


def test_a_static_cache_in_inference_mode(made: Made) -> None:
    """The keys and values are written in place, in one graph for every step."""
    model = tiny_model("llama", num_layers=1)
    compiled = native(model, full=True)
    with torch.inference_mode():
        caches = [StaticCache(config=model.config, max_cache_len=32) for _ in range(2)]
        for cache in caches:
            given = model(tokens(2, 7), past_key_values=cache).logits[:, -1:].argmax(-1)
        for _ in range(4):
            got = compiled(given, past_key_values=caches[0]).logits
            want = model(given, past_key_values=caches[1]).logits
            check_same(got, want)
            given = want[:, -1:].argmax(-1)
    check_all_taken(made())
    assert len(made()) == 1
