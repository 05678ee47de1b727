"""A user's own mixtures of experts, written as loops, from the module to the artifact."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from expert_models import ExpertDecoder, Loop, Matrices, OnlyThoseHit, PlusEquals

import graphwright
from graphwright.ir import format_graph
from graphwright.ir.tolerance import check_close
from graphwright.runtime.engine import Engine
from graphwright.runtime.sampling_params import SamplingParams

GREEDY = SamplingParams(temperature=0.0, max_tokens=16, ignore_eos=True)


def prompts() -> list[list[int]]:
    """Three prompts; the longest takes two steps of 16 tokens."""
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(0, 128, (n,), generator=generator).tolist() for n in (21, 1, 7)]


@pytest.mark.parametrize("block", (PlusEquals, OnlyThoseHit, Matrices))
def test_a_ragged_batch_equals_eager(block: type[Loop], tmp_path: Path) -> None:
    model = ExpertDecoder(block)
    compiled = graphwright.compile(model, chunk=16, check=True)
    engine = Engine(compiled.save(tmp_path / "model.gw"))
    for prompt, output in zip(
        prompts(), engine.generate(prompts(), GREEDY, return_logits=True), strict=True
    ):
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *output.token_ids]]))[0]
        wanted = logits[len(prompt) - 1 : -1]
        assert output.logits is not None
        check_close(torch.from_numpy(output.logits.copy()), wanted)
        assert output.token_ids == wanted.argmax(-1).tolist()


def test_a_token_reads_the_weights_of_its_experts_only() -> None:
    """In float32 and with the experts alone in int8: two of four experts, one row of each table."""
    sizes = []
    for quant in ("f32", "f32:experts=w8"):
        compiled = graphwright.compile(ExpertDecoder(PlusEquals), quant=quant, check=True)
        weights = compiled.built.plan["weights"]
        entries = {entry["name"]: entry["bytes"] for entry in weights["entries"]}
        experts = sum(size for name, size in entries.items() if "_experts_" in name)
        tables = (127 + 255) * 32 * 4
        assert weights["bytes"] - weights["bytes_per_token"] == experts // 2 + tables
        sizes.append(experts)
        text = format_graph(compiled.program)
        assert ("gw.quantized_routed_linear" in text) == (quant != "f32")
    assert sizes[0] == 2 * 4 * 4 * (3 * 48 * 32 + 48 + 32)
    assert sizes[1] < sizes[0] / 2
