"""The engine over the toy model: any mix of sequences gives what each gives alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy_model import (
    MAX_CONTEXT,
    VOCAB,
    Chooses,
    toy_engine,
    toy_greedy,
    toy_logits,
    write_toy,
)

import graphwright.runtime.artifact
from graphwright.runtime.draws import LARGEST
from graphwright.runtime.engine import Engine
from graphwright.runtime.errors import ArtifactError, RequestError
from graphwright.runtime.memory import is_aligned
from graphwright.runtime.request import Piece
from graphwright.runtime.sampling_params import SamplingParams

GREEDY = SamplingParams(temperature=0, max_tokens=9)


def prompts(*lengths: int) -> list[list[int]]:
    return [[(7 * n + 3 * i) % VOCAB for i in range(n)] for n in lengths]


def test_one_prompt(tmp_path: Path) -> None:
    engine, library = toy_engine(tmp_path)
    (output,) = engine.generate(prompts(3), GREEDY)
    assert output.token_ids == toy_greedy(prompts(3)[0], 9)
    assert (output.prompt_tokens, output.finish_reason, output.text) == (3, "length", "")
    assert library.steps == [("decode", 3, 1, 1)] + [("decode", 1, 1, 1)] * 8


def test_a_ragged_batch_with_chunked_prefill(tmp_path: Path) -> None:
    engine, library = toy_engine(tmp_path, max_sequences=3)
    many = prompts(1, 23, 5, 12, 2, 40, 9)
    outputs = engine.generate(many, GREEDY)
    assert [each.token_ids for each in outputs] == [toy_greedy(prompt, 9) for prompt in many]
    assert max(sequences for _, _, sequences, _ in library.steps) == 3
    assert {entry for entry, *_ in library.steps} == {"decode", "prefill"}
    # A middle chunk of a long prompt asks for no logits of its own.
    assert any(rows < sequences for _, _, sequences, rows in library.steps)
    assert engine._pool.free == engine._pool.blocks


@pytest.mark.parametrize("chooses", ["largest", "any"])
def test_steps_choose_what_they_can(chooses: Chooses, tmp_path: Path) -> None:
    """Whole rows of logits are read only where they do not; the tokens are the same either way."""
    drawn: dict[str, Any] = {"seed": 3, "max_tokens": 3}
    greedy, cut, whole, penalised = (
        SamplingParams(temperature=0, max_tokens=3),
        SamplingParams(temperature=2, top_k=8, top_p=0.9, min_p=0.01, **drawn),
        SamplingParams(temperature=2, **drawn),
        SamplingParams(top_k=2, repetition_penalty=1.3, **drawn),
    )
    plain, _ = toy_engine(tmp_path)
    engine, library = toy_engine(tmp_path, chooses)
    drawing = (cut, whole) if chooses == "any" else ()
    for params in (
        [greedy], [cut], [whole, cut], [greedy, cut], [penalised], [greedy, penalised],
        [cut, penalised, whole],
    ):  # fmt: skip
        library.asked.clear()
        many = prompts(3, 5, 2)[: len(params)]
        outputs = engine.generate(many, params)
        chosen = [each is greedy or each in drawing for each in params]
        for draws, rows in library.asked:
            assert rows == (not all(chosen)) and bool(draws) == any(chosen)
            assert not draws or [d is not LARGEST for d in draws] == [p in drawing for p in params]
        assert [each.token_ids for each in outputs] == [
            each.token_ids for each in plain.generate(many, params)
        ]
    long = prompts(25)
    library.asked.clear()
    engine.generate(long, whole)
    assert library.asked[0] == ((), False), "the chunk before the last: nothing is sampled"
    [kept] = engine.generate(long, greedy, return_logits=True)
    assert library.asked[-1] == ((LARGEST,), True)
    assert kept.logits is not None
    assert (kept.logits[0] == toy_logits(long[0])).all()


def test_blocks_are_used_again_in_any_order(tmp_path: Path) -> None:
    engine, _ = toy_engine(tmp_path, max_sequences=2)
    for lengths in ((40, 3), (2, 30), (17, 17)):
        many = prompts(*lengths)
        outputs = engine.generate(many, [GREEDY, SamplingParams(temperature=0, max_tokens=3)])
        assert outputs[0].token_ids == toy_greedy(many[0], 9)
        assert outputs[1].token_ids == toy_greedy(many[1], 3)


def test_streaming_and_interleaved_streams(tmp_path: Path) -> None:
    engine, _ = toy_engine(tmp_path)
    first, second = (engine.stream(prompt, GREEDY) for prompt in prompts(4, 15))
    a: list[Piece] = []
    b: list[Piece] = []
    for one, other in zip(first, second, strict=True):
        a.append(one)
        b.append(other)
    assert [i for piece in a for i in piece.token_ids] == toy_greedy(prompts(4)[0], 9)
    assert [i for piece in b for i in piece.token_ids] == toy_greedy(prompts(15)[0], 9)
    assert [piece.finish_reason for piece in a] == [None] * 8 + ["length"]


def test_closing_a_stream_frees_its_cache(tmp_path: Path) -> None:
    engine, _ = toy_engine(tmp_path)
    stream = engine.stream(prompts(20)[0], GREEDY)
    next(stream)
    assert engine._pool.free < engine._pool.blocks
    stream.close()
    assert engine._pool.free == engine._pool.blocks
    assert engine.step() is False


def test_pieces_arrive_as_they_are_made(tmp_path: Path) -> None:
    engine, _ = toy_engine(tmp_path)
    seen: list[tuple[int, int]] = []
    outputs = engine.generate(
        prompts(2, 3),
        GREEDY,
        on_piece=lambda number, piece: seen.append((number, piece.token_ids[0])),
    )
    for number, output in enumerate(outputs):
        assert [token for n, token in seen if n == number] == output.token_ids
    assert [n for n, _ in seen[:4]] == [0, 1, 0, 1]


def test_logits(tmp_path: Path) -> None:
    engine, library = toy_engine(tmp_path)
    prompt = prompts(27)[0]
    expected = np.stack([toy_logits(prompt[: i + 1]) for i in range(27)])
    assert (engine.logits(prompt) == expected).all()
    assert [tokens for _, tokens, *_ in library.steps] == [10, 10, 7]
    (output,) = engine.generate([prompt], GREEDY, return_logits=True)
    assert output.logits is not None and output.logits.shape == (9, VOCAB)
    for i, row in enumerate(output.logits):
        assert (row == toy_logits([*prompt, *output.token_ids[:i]])).all()


@pytest.mark.parametrize("mapped", [True, False])
@pytest.mark.parametrize("piece", [1 << 20, 100])
def test_weights_are_read_in_the_file_or_from_a_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mapped: bool, piece: int
) -> None:
    monkeypatch.setattr(graphwright.runtime.artifact, "_PIECE", piece)
    engine, _ = toy_engine(tmp_path, mmap=mapped)
    (output,) = engine.generate(prompts(5), GREEDY)
    assert output.token_ids == toy_greedy(prompts(5)[0], len(output.token_ids))
    weights, file = engine._buffers.weights, engine.artifact.view("weights.bin")
    assert bytes(weights) == bytes(file) == bytes(range(256))
    assert np.shares_memory(weights, np.frombuffer(file, np.uint8)) == mapped
    assert is_aligned(weights) and engine.memory.allocated["weights"] == 256


def test_the_context_ends_a_sequence(tmp_path: Path) -> None:
    engine, _ = toy_engine(tmp_path, context=30)
    (output,) = engine.generate(prompts(25), SamplingParams(temperature=0, max_tokens=99))
    assert len(output.token_ids) == 5 and output.finish_reason == "length"
    assert engine.logits(prompts(30)[0]).shape == (30, VOCAB)


def test_end_of_text_ends_a_sequence(tmp_path: Path) -> None:
    said = toy_greedy(prompts(3)[0], 9)
    path = write_toy(tmp_path / "eos.gw", generation_config={"eos_token_id": [said[4], 96]})
    from toy_model import ToyLibrary

    engine = Engine(path, library=ToyLibrary())
    (output,) = engine.generate(prompts(3), GREEDY)
    end = said.index(said[4]) + 1
    assert (output.token_ids, output.finish_reason) == (said[:end], "stop")
    ignoring = SamplingParams(temperature=0, max_tokens=9, ignore_eos=True)
    assert engine.generate(prompts(3), ignoring)[0].token_ids == said


def test_sampling_does_not_depend_on_the_batch(tmp_path: Path) -> None:
    engine, _ = toy_engine(tmp_path, max_sequences=2)
    params = SamplingParams(temperature=1.3, top_p=0.9, seed=5, max_tokens=12)
    many = prompts(2, 11, 30)
    together = [each.token_ids for each in engine.generate(many, params)]
    alone = [engine.generate([prompt], params)[0].token_ids for prompt in many]
    assert together == alone
    assert together[0] != toy_greedy(many[0], 12)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([], "the prompt is empty"),
        ("", "no tokenizer"),
        ([1, VOCAB], f"token id {VOCAB}; this model's ids are 0 to {VOCAB - 1}"),
        ([-1], "token id -1"),
        ([1] * 64, "prompt has 64 tokens, but the context holds 64 with at least one to generate"),
        ("hello", "no tokenizer"),
    ],
)
def test_bad_prompts(tmp_path: Path, prompt: list[int] | str, message: str) -> None:
    engine, library = toy_engine(tmp_path)
    with pytest.raises(RequestError, match=message):
        engine.generate([[1], prompt], GREEDY)
    assert library.steps == [] and engine.step() is False


def test_bad_options(tmp_path: Path) -> None:
    cases: tuple[tuple[dict[str, Any], str], ...] = (
        ({"context": MAX_CONTEXT + 1}, "from 1 to 64 tokens, not 65"),
        ({"context": 0}, "not 0"),
        ({"max_sequences": 11}, "from 1 to 10, not 11"),
        ({"threads": 0}, "from 1 to 512, not 0"),
    )
    for options, message in cases:
        with pytest.raises(RequestError, match=message):
            toy_engine(tmp_path, **options)


def test_a_context_beyond_memory_is_refused(tmp_path: Path) -> None:
    path = write_toy(tmp_path / "m.gw", max_context=None)
    with pytest.raises(RequestError, match=r"cannot reserve .* MiB of memory for "):
        Engine(path, context=10**14)


def test_an_incomplete_plan_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"plan.json is incomplete"):
        Engine(write_toy(tmp_path / "m.gw", kv={}))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ([], "'generation_config.json' of .* must hold a JSON object, not list"),
        ({"eos_token_id": "</s>"}, "has '</s>', which is no token id"),
        ({"eos_token_id": [1, 2.5]}, r"has 2\.5, which is no token id"),
    ],
)
def test_a_generation_config_that_is_none(config: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=message):
        Engine(write_toy(tmp_path / "m.gw", generation_config=config))


def test_defaults_of_a_model_that_are_no_numbers() -> None:
    defaults = {"do_sample": True, "top_p": "most"}
    with pytest.raises(RequestError, match="has 'most' for top_p, which is no number"):
        SamplingParams().resolve(defaults)
    assert SamplingParams(top_p=0.5).resolve(defaults).top_p == 0.5


def test_a_library_that_is_none(tmp_path: Path) -> None:
    path = write_toy(tmp_path / "m.gw")
    with pytest.raises(ArtifactError, match=r"step library of .* does not load"):
        Engine(path)


def test_memory_stays_as_planned(tmp_path: Path) -> None:
    engine, _ = toy_engine(tmp_path, max_sequences=3)
    assert engine.memory.allocated == engine.memory.planned
    assert engine.memory.planned["kv"] == 3 * MAX_CONTEXT * 16
    before = dict(engine.memory.allocated)
    engine.generate(prompts(1, 20, 40, 5), GREEDY)
    assert engine.memory.allocated == before
    assert all(array.ctypes.data % 64 == 0 for array in engine._buffers.arrays())
    with pytest.raises(AssertionError, match="the plan has"):
        engine.memory.allocate("arena", 1)
