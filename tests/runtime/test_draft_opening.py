"""Which artifacts can guess for another one, and what memory that takes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from draft_pairs import PROMPT, greedy, pair
from echo_toy import EchoToy, echo_greedy
from late_toy import LateToy
from numpy.typing import NDArray
from toy_model import BLOCK, PLAN, VOCAB, word_tokenizer, write_toy

from graphwright.runtime.draws import Draw
from graphwright.runtime.engine import Engine
from graphwright.runtime.errors import ArtifactError, RequestError
from graphwright.runtime.library import StepBuffers
from graphwright.runtime.sampling_params import SamplingParams


def toy_at(path: Path, tokenizer: str | None, size: int = VOCAB, **changes: Any) -> Path:
    return write_toy(path, tokenizer=tokenizer, vocab_size=size, **changes)


OTHER = word_tokenizer().replace('"a"', '"@@"').replace('"b"', '"a"').replace('"@@"', '"b"')


@pytest.mark.parametrize(
    ("tokenizers", "sizes", "message"),
    [
        ((word_tokenizer(), OTHER), (97, 97),
         r"other tokens than the model: 2 of 97 ids differ, the first is \d+, 'b' there and 'a'"),
        ((word_tokenizer(), None), (97, 98), r"has 98 tokens and the model 97, and .*small.gw has"),
        ((None, None), (97, 90), r"has 90 tokens and the model 97, and .*echo.gw has no tokenizer"),
        ((None, None), (97, 97), None),
        ((word_tokenizer(), word_tokenizer(bos=False)), (97, 97), None),
        ((word_tokenizer(), word_tokenizer()), (97, 128), None),
        ((word_tokenizer(), word_tokenizer()), (128, 97), None),
    ],
)  # fmt: skip
def test_a_draft_has_the_same_tokens(
    tmp_path: Path, tokenizers: Any, sizes: tuple[int, int], message: str | None
) -> None:
    """Vocabularies are often filled up to some size behind the tokens that there are."""
    path, small = (
        toy_at(tmp_path / name, tokenizer, size)
        for name, tokenizer, size in zip(("echo.gw", "small.gw"), tokenizers, sizes, strict=True)
    )
    options: dict[str, Any] = {"library": EchoToy(), "draft_library": EchoToy()}
    if message is None:
        engine = Engine(path, speculate=f"draft:{small}", **options)
        assert engine.draft is not None
        return
    with pytest.raises(RequestError, match=message):
        Engine(path, speculate=f"draft:{small}", **options)


@pytest.mark.parametrize("size", [VOCAB - 7, VOCAB + 9])
def test_a_draft_with_another_filling_guesses(tmp_path: Path, size: int) -> None:
    class Filled(EchoToy):
        def run(
            self, entry: str, buffers: StepBuffers, draws: Sequence[Draw] = (), logits: bool = True
        ) -> NDArray[np.int32] | None:
            assert buffers.logits.shape[1] == size
            whole = np.zeros((len(buffers.logits), VOCAB), np.float32)
            parts = {**vars(buffers), "logits": whole}
            found = super().run(entry, StepBuffers(**parts), draws, logits)
            width = min(size, VOCAB)
            buffers.logits[:] = 1e9  # tokens that there are not
            buffers.logits[:, :width] = whole[:, :width]
            return found

    engine, _, _ = pair(tmp_path, Filled(), draft_plan={"vocab_size": size})
    params = SamplingParams(temperature=1, seed=1, max_tokens=30, ignore_eos=True)
    for each in (greedy(30), params):
        [output] = engine.generate([PROMPT], each)
        right, _, _ = pair(tmp_path)
        assert output.token_ids == right.generate([PROMPT], each)[0].token_ids
    assert engine.statistics.accepted_tokens > 20


def test_what_cannot_be_a_draft(tmp_path: Path) -> None:
    for kv in ({"slot_bytes": 64}, {"rolling": ["conv"]}):
        with pytest.raises(RequestError, match=r"draft .*small.gw cannot take back .* rolling"):
            pair(tmp_path, draft_plan={"kv": {**PLAN["kv"], **kv}})
        with pytest.raises(RequestError, match=r"this model cannot: it has recurrent or rolling"):
            pair(tmp_path, plan={"kv": {**PLAN["kv"], **kv}})
    with pytest.raises(RequestError, match=r"speculation is for CPUs"):
        pair(tmp_path, library=LateToy())
    path = write_toy(tmp_path / "echo.gw")
    with pytest.raises(ArtifactError, match=r"nothing.gw cannot be read: No such file"):
        Engine(path, library=EchoToy(), speculate=f"draft:{tmp_path / 'nothing.gw'}")
    (tmp_path / "text.gw").write_text("no artifact")
    with pytest.raises(ArtifactError, match=r"text.gw"):
        Engine(path, library=EchoToy(), speculate=f"draft:{tmp_path / 'text.gw'}:3")


def test_memory_of_the_draft_is_as_planned(tmp_path: Path) -> None:
    engine, _, _ = pair(tmp_path, max_sequences=3, context=30)
    draft = engine.draft
    assert draft is not None and draft.memory.allocated == draft.memory.planned
    assert draft.memory.planned["logits"] == 4 * VOCAB * 4, "a row of each sequence of a step"
    assert draft.memory.planned["kv"] == 3 * 8 * BLOCK * 16


def test_a_draft_keeps_all_blocks_whatever_it_reads(tmp_path: Path) -> None:
    """Its attention may have windows: it reads on behind what a model has taken back."""
    windows = {"kv": {**PLAN["kv"], "reach": {"first": 0, "span": 5}}}
    engine, _, small = pair(tmp_path, draft_plan=windows, max_sequences=1)
    draft = engine.draft
    assert draft is not None and draft.memory.planned["kv"] == 16 * BLOCK * 16
    [output] = engine.generate([PROMPT], greedy(50))
    assert output.token_ids == echo_greedy(PROMPT, 50) and small.steps
