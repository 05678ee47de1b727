"""A compiled model whose attention was restricted: what it computes, and what it keeps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import random_tokens, save_tiny, tiny_model
from torch import nn

import graphwright
from graphwright.__main__ import main
from graphwright.ir import PassError
from graphwright.runtime.sampling_params import SamplingParams

WINDOW, FIRST, LENGTH = 20, 3, 100
MASK = f"window({WINDOW}) | first({FIRST})"


def expected(model: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """Logits of the eager model under a mask of ours, of positions only."""
    place = torch.arange(len(tokens))
    behind = place[:, None] - place[None, :]
    visible = (behind >= 0) & ((behind < WINDOW) | (place[None, :] < FIRST))
    mask = torch.where(visible, 0.0, torch.finfo(torch.float32).min)[None, None]
    with torch.no_grad():
        logits: torch.Tensor = model(tokens[None], attention_mask=mask, use_cache=False).logits[0]
    return logits


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("restricted") / "tiny.gw"
    model = tiny_model("llama", num_layers=2)
    compiled = graphwright.compile(model, chunk=32, attention=MASK, check=True)
    return compiled.save(path)


def test_logits_are_those_of_the_eager_model_under_that_mask(artifact: Path) -> None:
    model, tokens = tiny_model("llama", num_layers=2), random_tokens(LENGTH)
    engine = graphwright.load(artifact, max_sequences=1, context=128)
    assert len(engine.logits(tokens.tolist())) == LENGTH
    want = expected(model, tokens).numpy()
    assert np.allclose(engine.logits(tokens.tolist()), want, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("prefix_cache", [False, True])
def test_many_long_texts_in_a_small_cache(artifact: Path, prefix_cache: bool) -> None:
    """Each token that is said is the one that the eager model says under the mask."""
    model = tiny_model("llama", num_layers=2)
    engine = graphwright.load(artifact, max_sequences=3, context=128, prefix_cache=prefix_cache)
    assert engine._pool.blocks < 3 * 128 // 16
    prompts = [random_tokens(n, seed=n).tolist() for n in (60, 5, 33, 1, 60)]
    greedy = SamplingParams(temperature=0, max_tokens=60, ignore_eos=True)
    for prompt, output in zip(prompts, engine.generate(prompts, greedy), strict=True):
        said = output.token_ids
        want = expected(model, torch.tensor([*prompt, *said]))[len(prompt) - 1 : -1]
        chosen = want[torch.arange(len(said)), torch.tensor(said)]
        assert (want.max(-1).values - chosen < 1e-3).all()
    assert engine._pool.free == engine._pool.blocks


def test_the_command_line_plans_compiles_and_tells(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, out = str(save_tiny("llama", tmp_path / "tiny", num_layers=2)), tmp_path / "m.gw"
    asked = ["--attention", MASK, "--chunk", "32"]
    sizes = ["--max-sequences", "2", "--context", "200"]
    assert main(["plan", checkpoint, *asked, *sizes]) == 0
    planned = capsys.readouterr().out
    assert f"the first {FIRST} and the last {WINDOW} tokens are read\n" in planned
    assert main(["compile", checkpoint, *asked, "-o", str(out), "--quiet"]) == 0
    text = capsys.readouterr().out
    assert "restrict-attention: 2 of 2 attention layers see 'causal & (window(20) | first" in text
    assert main(["plan", str(out), *sizes]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == planned.splitlines()[1:]
    engine = graphwright.load(out, max_sequences=2, context=200)
    assert engine.memory.allocated == engine.memory.planned
    assert main(["inspect", str(out), "--memory"]) == 0
    assert "the first 3 and the last 20 positions can be read again" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("attention", "message"),
    [("wide", "is nothing that attention can be restricted to"),
     ("window(4) @ 2", "attention of layer 2 is to be restricted")],
)  # fmt: skip
def test_what_cannot_be_is_one_sentence(
    attention: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = str(save_tiny("llama", tmp_path / "tiny", num_layers=2))
    assert main(["compile", checkpoint, "--attention", attention, "--quiet"]) == 1
    assert message in capsys.readouterr().err


def test_a_model_with_a_window_gives_blocks_back_by_itself() -> None:
    """All of the layers have one: nothing has to be asked for."""
    windowed: Any = tiny_model("mistral", num_layers=2, sliding_window=8)
    engine = graphwright.compile(windowed, chunk=16, check=False).load(
        max_sequences=2, context=256, mmap=False
    )
    assert engine._pool.blocks < 2 * 256 // 16
    tokens = random_tokens(120)
    with torch.no_grad():
        want = windowed(tokens[None], use_cache=False).logits[0].numpy()
    assert np.allclose(engine.logits(tokens.tolist()), want, rtol=1e-3, atol=1e-3)
    with pytest.raises(PassError, match=r"and no mask is what it and 'causal & \(window\(4\) \|"):
        graphwright.compile(windowed, attention="window(4) | first(2)")
