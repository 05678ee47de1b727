"""A draft model beside the toy: all say what they say without its guesses, in fewer steps."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from draft_pairs import EOS, PROMPT, Nearly, Wrong, greedy, pair
from echo_toy import EchoToy, echo_greedy, echo_logits
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from request_events import ECHO_PROMPTS, GREEDY, check_events, drawn, events
from toy_model import BLOCK, PLAN, VOCAB, ToyLibrary

from graphwright.runtime.draft_speculator import DraftSpeculator
from graphwright.runtime.draws import Draw
from graphwright.runtime.engine import Engine
from graphwright.runtime.grammar import Grammar
from graphwright.runtime.library import StepBuffers
from graphwright.runtime.sampling_params import SamplingParams


def speculator(engine: Engine) -> DraftSpeculator:
    found = engine._stepper._speculator
    assert isinstance(found, DraftSpeculator)
    return found


def check_nothing_is_left(engine: Engine) -> None:
    draft = engine.draft
    assert draft is not None and not draft._followers and not speculator(engine)._texts
    assert draft._parts.pools.free == draft._parts.pools.blocks
    assert engine._pool.free == engine._pool.blocks


def test_a_draft_that_knows_saves_steps(tmp_path: Path) -> None:
    engine, library, draft = pair(tmp_path)
    [output] = engine.generate([PROMPT], greedy(40))
    assert output.token_ids == echo_greedy(PROMPT, 40)
    found = engine.statistics
    assert found.turns + found.accepted_tokens == found.decode_tokens == 39
    assert found.drafted_tokens == found.accepted_tokens, "it is never wrong"
    assert len(library.steps) <= 1 + 12, "four tokens a step, the most that the entry takes"
    assert draft.steps[0] == ("prefill", 8, 1, 0), "the prompt, but for its end, and no token"
    assert {entry for entry, *_ in draft.steps[1:]} == {"decode"}
    assert sum(tokens for _, tokens, *_ in draft.steps) < 8 + 40, "nothing is read twice"
    assert 0 < found.draft_seconds < found.decode_seconds
    check_nothing_is_left(engine)


def test_the_first_token_does_not_wait_for_the_draft(tmp_path: Path) -> None:
    engine, _, draft = pair(tmp_path)
    request = engine.submit([5] * 40, greedy(9))
    while not request.generated:
        engine.step()
    assert not draft.steps
    engine.generate([[9] * 30], greedy(1))
    assert all(tokens < 30 for _, tokens, *_ in draft.steps), "nor is a prompt read for nothing"


def test_a_second_run_is_the_same_step_by_step(tmp_path: Path) -> None:
    runs = []
    for _ in range(2):
        engine, library, draft = pair(tmp_path, Nearly())
        engine.generate([PROMPT, PROMPT[2:]], greedy(30))
        engine.generate([PROMPT[1:]], SamplingParams(temperature=2, seed=1, max_tokens=30))
        runs.append((library.steps, draft.steps))
    assert runs[0] == runs[1]


@pytest.mark.parametrize("most", [1, 2, 3])
def test_the_most_tokens_of_a_guess(tmp_path: Path, most: int) -> None:
    engine, library, _ = pair(tmp_path, most=f":{most}")
    [output] = engine.generate([PROMPT], greedy(40))
    assert output.token_ids == echo_greedy(PROMPT, 40)
    assert max(tokens for _, tokens, *_ in library.steps[1:]) == most + 1


def test_wrong_guesses_cease_and_are_tried_again(tmp_path: Path) -> None:
    """Less and less often; a second text does not begin from nothing."""
    long = {"max_context": 2048}
    engine, library, draft = pair(tmp_path, Wrong(), plan=long, draft_plan=long)
    engine.generate([PROMPT], greedy(600))
    found = engine.statistics
    assert found.accepted_tokens <= 2 and found.drafted_tokens < 20
    assert sum(tokens > 1 for _, tokens, *_ in library.steps[-500:]) < 5
    rounds = [rows for *_, rows in draft.steps].count(1)
    assert 5 < rounds < 25
    draft.steps.clear()
    engine.generate([PROMPT[:4]], greedy(600))
    assert 0 < [rows for *_, rows in draft.steps].count(1) < rounds


def test_a_draft_that_becomes_right_is_noticed(tmp_path: Path) -> None:
    class Late(Wrong):
        def logits_after(self, history: Sequence[int]) -> NDArray[np.float32]:
            return echo_logits(history) if len(history) > 300 else super().logits_after(history)

    long = {"max_context": 2048}
    engine, library, _ = pair(tmp_path, Late(), plan=long, draft_plan=long)
    [output] = engine.generate([PROMPT], greedy(900))
    assert output.token_ids == echo_greedy(PROMPT, 900)
    assert engine.statistics.accepted_tokens > 150, "it has been tried at most 256 tokens before"
    assert {tokens for _, tokens, *_ in library.steps[-20:-1]} == {4}


@pytest.mark.parametrize("read", [10**8, 8 * 10**8, 10**9])
def test_a_draft_that_costs_too_much_does_not_guess(tmp_path: Path, read: int) -> None:
    weights = {**PLAN["weights"], "bytes_per_token": read}
    engine, _, draft = pair(tmp_path, draft_plan={"weights": weights})
    [output] = engine.generate([PROMPT], greedy(50))
    assert output.token_ids == echo_greedy(PROMPT, 50)
    if read < 10**9:
        assert engine.statistics.accepted_tokens > 0
    else:
        assert not draft.steps


def test_one_that_ends_soon_is_not_read_for(tmp_path: Path) -> None:
    """The draft would have to read a long prompt for a few tokens."""
    for tokens, reads in ((3, False), (40, True)):
        engine, _, draft = pair(tmp_path, plan={"max_context": 2048}, max_sequences=1,
                                draft_plan={"max_context": 2048}, context=1200)  # fmt: skip
        engine.generate([[5, 6, 7] * 300], greedy(tokens))
        assert bool(draft.steps) is reads


def test_a_shorter_context_of_the_draft(tmp_path: Path) -> None:
    """Sequences go on without guesses where it ends."""
    engine, library, _ = pair(tmp_path, draft_plan={"max_context": 24})
    [output] = engine.generate([PROMPT], greedy(50))
    assert output.token_ids == echo_greedy(PROMPT, 50)
    assert engine.statistics.accepted_tokens > 5
    assert {tokens for _, tokens, *_ in library.steps[-20:]} == {1}
    assert engine.draft is not None and engine.draft.context == 24
    check_nothing_is_left(engine)


@pytest.mark.parametrize("length", range(1, 6))
def test_nothing_is_computed_behind_the_last_token(tmp_path: Path, length: int) -> None:
    engine, library, _ = pair(tmp_path, context=24, max_sequences=1)
    prompt = [5] * (24 - length)
    for params in (greedy(length), greedy(99)):
        library.steps.clear()
        [output] = engine.generate([prompt], params)
        assert output.token_ids == echo_greedy(prompt, length)
        assert max(rows for *_, rows in library.steps) <= max(1, length - 1)
    check_nothing_is_left(engine)


def test_sequences_share_the_rows_of_a_step(tmp_path: Path) -> None:
    engine, library, _ = pair(tmp_path, max_sequences=4)
    prompts = [[5] * 9, [6] * 9, PROMPT]
    outputs = engine.generate(prompts, greedy(30))
    for prompt, output in zip(prompts, outputs, strict=True):
        assert output.token_ids == echo_greedy(prompt, 30)
    assert ("decode", 4, 3, 4) in library.steps, "one guessed token among three sequences"
    assert ("decode", 4, 2, 4) in library.steps or ("decode", 3, 2, 3) in library.steps
    check_nothing_is_left(engine)


def test_the_draft_reads_a_prompt_in_chunks_and_once(tmp_path: Path) -> None:
    """Beside steps of the model, and the next prompt that begins alike from where it differs."""
    engine, library, draft = pair(tmp_path, prefix_cache=True, max_sequences=2)
    prompt = [5, 6, 7, 8, 9] * 7
    [output] = engine.generate([prompt], greedy(12))
    assert output.token_ids == echo_greedy(prompt, 12)
    assert [each[:2] for each in draft.steps[:4]] == [("prefill", 10)] * 3 + [("prefill", 8)]
    between = [tokens for entry, tokens, *_ in library.steps if entry == "decode"]
    assert between[:3] == [1, 1, 1], "which decodes meanwhile"
    draft.steps.clear()
    longer = [*prompt, *output.token_ids, 3, 4]
    [output] = engine.generate([longer], greedy(12))
    assert output.token_ids == echo_greedy(longer, 12)
    read = sum(tokens for _, tokens, *_ in draft.steps)
    assert read < 2 * BLOCK + 4 + 12
    check_nothing_is_left(engine)


def test_what_is_kept_are_keys_of_what_was_said(tmp_path: Path) -> None:
    engine, _, _ = pair(tmp_path, Nearly(), prefix_cache=True, max_sequences=1)
    engine.generate([PROMPT], greedy(40))
    draft = engine.draft
    assert draft is not None and draft._parts.prefixes is not None
    said = [*PROMPT, *echo_greedy(PROMPT, 40)]
    follower = draft.follow(engine.submit([*said, 1]).sequence)
    known = follower.own.computed
    assert known > 30
    cache = draft._parts.buffers.kv.view(np.int64).reshape(-1, BLOCK, 2)
    assert follower.own.table is not None
    blocks = follower.own.table.tables[0].blocks[: known // BLOCK]
    assert cache[blocks, :, 0].ravel().tolist() == said[:known]


def test_drawn_texts_do_not_depend_on_the_draft(tmp_path: Path) -> None:
    """By other random numbers than without one, but by the same for every draft."""
    params = SamplingParams(temperature=1.5, seed=3, max_tokens=40, ignore_eos=True)
    texts, accepted = [], []
    for draft in (EchoToy(), Nearly(), Wrong()):
        engine, _, _ = pair(tmp_path, draft)
        [output] = engine.generate([PROMPT], params)
        [beside, _] = engine.generate([PROMPT, [9] * 9], params)
        texts += [output.token_ids, beside.token_ids]
        accepted.append(engine.statistics.accepted_tokens)
    assert all(each == texts[0] for each in texts)
    assert accepted[0] > accepted[1] > accepted[2]


def test_logits_that_are_kept_are_those_of_the_tokens_that_were_said(tmp_path: Path) -> None:
    engine, _, _ = pair(tmp_path, Nearly())
    params = greedy(20, logprobs=2)
    outputs = engine.generate([PROMPT, [9]], params, return_logits=True)
    for prompt, output in zip([PROMPT, [9]], outputs, strict=True):
        assert output.logits is not None and len(output.logits) == 20
        assert output.logprobs is not None and len(output.logprobs) == 20
        for number, row in enumerate(output.logits):
            assert (row == echo_logits([*prompt, *output.token_ids[:number]])).all()
    assert engine.statistics.accepted_tokens


@pytest.mark.parametrize(
    "options",
    [
        {"repetition_penalty": 1.5}, {"frequency_penalty": 2.0, "presence_penalty": 1.0},
        {"logit_bias": {9: 100}}, {"temperature": 1.0, "seed": 2, "repetition_penalty": 1.3},
        {"grammar": Grammar.regex("([a-f]{2},)*")},
        {"temperature": 1.5, "seed": 1, "grammar": Grammar.regex("([0-9] )*")},
    ],
    ids=str,
)  # fmt: skip
def test_a_draft_keeps_to_what_changes_logits(tmp_path: Path, options: dict[str, Any]) -> None:
    """It guesses what the request would choose, so one that knows the model is never wrong."""
    if "grammar" in options:
        pytest.importorskip("llguidance")
    engine, _, _ = pair(tmp_path)
    params = SamplingParams(**{"temperature": 0, "max_tokens": 40, "ignore_eos": True, **options})
    [output] = engine.generate([PROMPT], params)
    found = engine.statistics
    assert found.accepted_tokens == found.drafted_tokens > 20
    silent, _, _ = pair(tmp_path, Wrong())
    [expected] = silent.generate([PROMPT], params)
    assert (output.token_ids, output.text) == (expected.token_ids, expected.text)


def text_of(ids: list[int]) -> str:
    names = ["", "", " ", *(chr(code) for code in range(33, 125))]
    return "".join(names[i] for i in ids)


def test_a_stop_text_in_the_middle_of_a_run(tmp_path: Path) -> None:
    engine, _, _ = pair(tmp_path, prefix_cache=True, max_sequences=2)
    prompt = [40, 41, 42, 43, 44] * 2
    said = echo_greedy(prompt, 40)
    for at in range(8, 16):
        stop = text_of(said[at : at + 2])
        end = text_of(said).index(stop) + 2
        [output] = engine.generate([prompt], greedy(40, stop=stop))
        assert (output.token_ids, output.finish_reason) == (said[:end], "stop")
        longer = [*prompt, *said[: end + 3]]
        [output] = engine.generate([longer], greedy(9))
        assert output.token_ids == echo_greedy(longer, 9)
    check_nothing_is_left(engine)


def test_nothing_is_guessed_behind_an_end_of_text(tmp_path: Path) -> None:
    class Says(ToyLibrary):
        def logits_after(self, history: Sequence[int]) -> NDArray[np.float32]:
            logits = np.zeros(VOCAB, np.float32)
            logits[EOS[0] if len(history) == 11 else 50] = 30
            return logits

    engine, _, _ = pair(tmp_path, Says(), Says("largest"))
    [output] = engine.generate([[1] * 6], SamplingParams(temperature=0, max_tokens=40))
    assert (output.token_ids[-1], output.finish_reason) == (EOS[0], "stop")
    assert len(output.token_ids) == 6
    assert engine.statistics.drafted_tokens == engine.statistics.accepted_tokens == 3


class Interrupted(EchoToy):
    """Interrupts the program at some of its steps, before or after they are done."""

    def run(
        self, entry: str, buffers: StepBuffers, draws: Sequence[Draw] = (), logits: bool = True
    ) -> NDArray[np.int32] | None:
        if len(self.steps) % 5 == 3:
            self.steps.append((entry, 0, 0, 0))
            raise KeyboardInterrupt
        found = super().run(entry, buffers, draws, logits)
        if len(self.steps) % 7 == 6:
            raise KeyboardInterrupt
        return found


@pytest.mark.parametrize(("library", "draft"), [(Interrupted, EchoToy), (EchoToy, Interrupted)])
def test_a_step_that_was_interrupted_is_made_again(
    tmp_path: Path, library: Any, draft: Any
) -> None:
    engine, _, _ = pair(tmp_path, draft(), library("largest"), prefix_cache=True)
    request, interrupts = engine.submit(PROMPT, greedy(40)), 0
    while not request.finished:
        try:
            engine.step()
        except KeyboardInterrupt:
            interrupts += 1
    assert interrupts > 4 and request.generated == echo_greedy(PROMPT, 40)
    assert engine.statistics.accepted_tokens > 5
    check_nothing_is_left(engine)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("temperature", [0, 1])
def test_a_draft_that_is_broken_guesses_nothing(
    tmp_path: Path, bad: float, temperature: int
) -> None:
    class Broken(EchoToy):
        def logits_after(self, history: Sequence[int]) -> NDArray[np.float32]:
            return np.full(VOCAB, bad, np.float32)

    engine, _, _ = pair(tmp_path, Broken())
    params = SamplingParams(temperature=temperature, seed=1, max_tokens=30, ignore_eos=True)
    [output] = engine.generate([PROMPT], params)
    right, _, _ = pair(tmp_path)
    assert output.token_ids == right.generate([PROMPT], params)[0].token_ids
    assert engine.statistics.drafted_tokens == 0


@cache
def alone(prompt: tuple[int, ...], params: SamplingParams) -> tuple[list[int], str, str]:
    """What a request says by itself, beside a draft that is never right."""
    [output] = _PLAIN.generate([list(prompt)], params)
    return output.token_ids, output.text, output.finish_reason


@pytest.fixture(scope="module", autouse=True)
def plain() -> Iterator[None]:
    global _PLAIN
    with tempfile.TemporaryDirectory() as folder:
        _PLAIN, _, _ = pair(Path(folder), Wrong(), EchoToy("none"), max_sequences=3)
        yield


_PLAIN: Engine
DRAFTS: list[Callable[[], ToyLibrary]] = [EchoToy, Nearly, Wrong]


@settings(max_examples=120, deadline=None)
@given(
    events(ECHO_PROMPTS, GREEDY, drawn(30)), st.booleans(),
    st.sampled_from(["none", "largest", "any"]), st.sampled_from(DRAFTS),
)  # fmt: skip
def test_every_request_says_what_it_says_alone(
    happened: list[Any], prefix_cache: bool, chooses: Any, draft: Callable[[], ToyLibrary]
) -> None:
    small = _PLAIN.artifact.path.parent / "small.gw"
    engine = Engine(
        _PLAIN.artifact, library=EchoToy(chooses), draft_library=draft(), max_sequences=3,
        prefix_cache=prefix_cache, speculate=f"draft:{small}",
    )  # fmt: skip
    check_events(engine, happened, alone)
    check_nothing_is_left(engine)
