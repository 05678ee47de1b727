"""Ten seconds that say whether anything works: a tiny model from nn.Module to tokens."""

from __future__ import annotations

from pathlib import Path

import torch
from tiny_models import tiny_model

import graphwright


def test_a_tiny_module_becomes_a_file_that_generates_what_the_module_would(tmp_path: Path) -> None:
    model = tiny_model("llama")
    path = graphwright.compile(model, quant="f32").save(tmp_path / "tiny.gw")
    prompt = [3, 17, 29, 5]
    params = graphwright.SamplingParams(max_tokens=12, ignore_eos=True)
    output = graphwright.load(path).generate([prompt], params)[0]
    tokens = list(prompt)
    with torch.no_grad():
        for _ in range(12):
            logits = model(input_ids=torch.tensor([tokens]), use_cache=False).logits
            tokens.append(int(logits[0, -1].argmax()))
    assert list(output.token_ids) == tokens[len(prompt) :]
