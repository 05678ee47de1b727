"""The sweep's own parts: tiny configurations hold every layer type; results become the table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from report import report
from results import read_results
from tiny_configs import MODEL_TYPES, layer_kinds, tiny_config
from tiny_decoders import NotADecoderError, check_is_decoder, eager_logits, tiny_decoder


@pytest.mark.parametrize(
    ("model_type", "layers"),
    [
        ("llama", "2 layers"),
        ("gemma2", "sliding_attention, full_attention"),
        ("afmoe", "sliding_attention, full_attention"),
        ("mimo_v2_flash", "full_attention+dense, sliding_attention+sparse, full_attention+sparse"),
        ("gemma3n_text", ", ".join(["sliding_attention, full_attention"] * 2)),
        ("qwen3_next", "linear_attention, full_attention"),
    ],
)  # fmt: skip
def test_every_kind_of_layer_stays(model_type: str, layers: str) -> None:
    config = tiny_config(model_type)
    assert layer_kinds(config) == layers
    assert config.get_text_config().vocab_size == 128


def test_a_window_is_shorter_than_the_prompts() -> None:
    assert tiny_config("gemma2").sliding_window == 8
    assert tiny_config("gpt_neo").window_size == 8


def test_a_decoder_passes_the_check_and_has_decisive_logits() -> None:
    model = tiny_decoder("stablelm")
    check_is_decoder(model)
    logits = eager_logits(model, list(range(10, 20)))
    assert float(logits.std()) > 0.5 and len(set(logits.argmax(-1).tolist())) > 3


def test_what_looks_ahead_is_no_decoder() -> None:
    with pytest.raises(NotADecoderError, match="logits of the first 20 of 21 tokens change"):
        check_is_decoder(tiny_decoder("xlnet"))


def test_what_ignores_its_context_is_a_bad_subject() -> None:
    class Unigram(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = torch.nn.Embedding(128, 128)

        def forward(self, input_ids: torch.Tensor) -> Any:
            return type("Out", (), {"logits": self.table(input_ids)})()

    with pytest.raises(ValueError, match="an earlier token changes the last logits"):
        check_is_decoder(Unigram())


def row(model: str, status: str, reason: str = "", **more: Any) -> dict[str, Any]:
    found = {"model": model, "cls": MODEL_TYPES[model], "status": status, "reason": reason}
    return {**found, "layers": "sliding_attention, full_attention", "rung": "plain export", **more}


ROWS = [
    row("gemma2", "exact"),
    row("mamba", "refused", "FrontendError: it loops.", rung=""),
    row("doge", "refused", 'PassError: node \'a\' (from File "/x/lib/site-packages/transformers/'
        'models/m.py", line 3, in f a | b)\n  in pass \'p\'.'),
    row("xlnet", "no decoder", "it is not causal"),
    row("opt", "crashed", "Traceback\nKeyError: 'x'", layers=""),
]  # fmt: skip


def test_the_last_line_of_a_model_counts(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    assert read_results(path) == {}
    lines = [row("opt", "crashed"), row("gemma2", "exact"), row("opt", "exact")]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert {model: r["status"] for model, r in read_results(path).items()} == {
        "opt": "exact",
        "gemma2": "exact",
    }


def test_the_table_says_what_became_of_each() -> None:
    page = report(ROWS, "9.9")
    assert "transformers 9.9" in page
    assert "Of 4 text decoders: 0 wrong, 1 crashed, 1 exact, 2 refused." in page
    assert "| `gemma2` | Gemma2ForCausalLM | sliding, full | plain export |" in page
    assert "| `mamba` | sliding, full | it loops. | – |" in page
    assert (
        "| `doge` | sliding, full | node 'a' (from transformers/models/m.py:3, in f a \\| b) "
        "in pass 'p'. | plain export |" in page
    )
    assert "| `opt` |  | KeyError: 'x' | plain export |" in page
    assert page.index("## Crashed: 1") < page.index("## Exact: 1") < page.index("## Refused: 2")
