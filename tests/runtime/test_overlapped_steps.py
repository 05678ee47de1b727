"""Steps that start before the tokens in front of them are known: who waits for whom, and that
every request says what it says alone."""

from __future__ import annotations

import itertools
import tempfile
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from late_toy import LateToy
from request_events import GREEDY, check_events, drawn, events
from toy_model import ToyLibrary, toy_greedy, toy_logits, word_tokenizer, write_toy

from graphwright.runtime.engine import Engine
from graphwright.runtime.errors import RequestError
from graphwright.runtime.grammar import Grammar
from graphwright.runtime.sampling_params import SamplingParams

EOS = [7, 20, 33, 46, 59, 72, 85]  # many, so that sequences end in the middle


def greedy(tokens: int, **options: Any) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, **options)


def late_engine(folder: Path, **options: Any) -> tuple[Engine, LateToy]:
    library = LateToy()
    path = write_toy(
        folder / "late.gw",
        tokenizer=word_tokenizer(),
        generation_config={"eos_token_id": EOS},
    )
    return Engine(path, library=library, **options), library


def order(library: LateToy) -> list[str]:
    return [f"{what} {number}" for what, number in library.said]


def test_a_step_starts_before_the_one_in_front_is_looked_at(tmp_path: Path) -> None:
    """Of one that ends with its fourth token no step is started for a fifth."""
    engine, library = late_engine(tmp_path)
    [output] = engine.generate([[5, 7, 11]], greedy(4))
    assert output.token_ids == toy_greedy([5, 7, 11], 4)
    assert order(library) == [
        "start 0", "start 1", "finish 0", "start 2", "finish 1", "start 3", "finish 2", "finish 3",
    ]  # fmt: skip
    assert library.steps == [("decode", 3, 1, 1)] + [("decode", 1, 1, 1)] * 3


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(
            temperature=2, seed=1, max_tokens=4, ignore_eos=True, repetition_penalty=1.3
        ),
        greedy(4, repetition_penalty=1.3),
        greedy(4, frequency_penalty=0.5),
        greedy(4, logit_bias={5: 1}),
        greedy(4, grammar=Grammar.regex("[a-z]{4}")),
        greedy(4, logprobs=2),
    ],
    ids=["drawn", "penalty", "counts", "bias", "grammar", "logprobs"],
)
def test_steps_wait_where_the_host_chooses(tmp_path: Path, params: SamplingParams) -> None:
    engine, library = late_engine(tmp_path)
    engine.generate([[5], [6, 3]], [greedy(6), params])
    alone = ["start 4", "start 5", "finish 4", "finish 5"]  # when the other one has ended
    for number in range(4):
        assert order(library)[2 * number : 2 * number + 2] == [
            f"start {number}",
            f"finish {number}",
        ]
    assert order(library)[8:] == alone
    library.said.clear()
    engine.generate([[5]], greedy(3), return_logits=True)
    assert [what for what, _ in library.said] == ["start", "finish"] * 3


DRAWS = [{}, {"top_k": 8}, {"top_p": 0.8, "min_p": 0.1}]


@pytest.mark.parametrize("options", DRAWS, ids=str)
def test_steps_that_draw_overlap(tmp_path: Path, options: dict[str, Any]) -> None:
    """Beside a greedy one; a request's random numbers are those that it would have alone."""
    drawn = SamplingParams(temperature=2, seed=1, max_tokens=4, ignore_eos=True, **options)
    engine, library = late_engine(tmp_path)
    outputs = engine.generate([[5], [6, 3]], [greedy(4), drawn])
    assert order(library)[:3] == ["start 0", "start 1", "finish 0"]
    plain = Engine(engine.artifact, library=ToyLibrary())
    assert [each.token_ids for each in outputs] == [
        toy_greedy([5], 4), plain.generate([[6, 3]], drawn)[0].token_ids
    ]  # fmt: skip


def test_who_surely_ends_is_left_out_of_the_step_behind(tmp_path: Path) -> None:
    engine, library = late_engine(tmp_path, context=20)
    prompts = [[5], [6, 3], [2] * 18, [9]]
    outputs = engine.generate(prompts, [greedy(n) for n in (5, 1, 9, 3)])
    assert [len(each.token_ids) for each in outputs] == [5, 1, 2, 3]
    for prompt, output in zip(prompts, outputs, strict=True):
        assert output.token_ids == toy_greedy(prompt, len(output.token_ids))
    assert sum(rows for *_, rows in library.steps) == 5 + 1 + 2 + 3, "no row was for nothing"
    assert ("start", "start") in itertools.pairwise(what for what, _ in library.said)


def test_rows_of_those_that_have_ended_are_ignored(tmp_path: Path) -> None:
    """Their blocks go to others at once, and a step in which nobody is left is waited for."""
    engine, library = late_engine(tmp_path, max_sequences=2)
    first, second = (engine.submit(prompt, greedy(20)) for prompt in ([5, 9], [6] * 9))
    while not second.generated:
        engine.step()
    engine.step()
    assert len(library.open) == 1, "a step of both runs"
    engine.cancel(first)
    third = engine.submit([4] * 7, greedy(5))
    while not third.finished:
        engine.step()
    assert third.generated == toy_greedy([4] * 7, 5)
    said = len(second.generated)
    assert second.generated == toy_greedy([6] * 9, said)
    assert len(library.open) == 1, "and one of the second alone"
    engine.cancel(second)
    assert (engine.logits([8, 1]) == np.stack([toy_logits([8]), toy_logits([8, 1])])).all()
    assert not library.open and engine._pool.free == engine._pool.blocks
    assert engine.step() is False


def test_a_new_request_waits_for_the_step_that_runs_and_no_longer(tmp_path: Path) -> None:
    engine, library = late_engine(tmp_path)
    """Then its prompt goes in, 9 tokens a step beside the other one's."""
    engine.submit([5], greedy(30))
    for _ in range(3):
        engine.step()
    new = engine.submit([6] * 25, greedy(2))
    before = library._number
    engine.step()
    assert library._number == before, "nothing starts behind the one that ran"
    for _ in range(3):
        assert not new.generated
        engine.step()
    assert new.generated == toy_greedy([6] * 25, 1)


def test_while_all_places_are_taken_steps_overlap(tmp_path: Path) -> None:
    """Where one will surely be free, the next step is for whoever waits for it."""
    engine, library = late_engine(tmp_path, max_sequences=1)
    first, second = (engine.submit([token], greedy(3)) for token in (5, 6))
    while not (first.finished and second.finished):
        engine.step()
    assert (first.generated, second.generated) == (toy_greedy([5], 3), toy_greedy([6], 3))
    once = ["start", "start", "finish", "start", "finish", "finish"]
    assert [what for what, _ in library.said] == once * 2


class Fails:
    """A request whose text cannot be made: an error that is no RequestError."""

    def push(self, token: int) -> str:
        raise KeyError("no such text")


@pytest.mark.parametrize("kind", ["nan", "error"])
def test_a_request_that_fails_leaves_the_others_their_tokens(tmp_path: Path, kind: str) -> None:
    engine, library = late_engine(tmp_path)
    first, second = (engine.submit(prompt, greedy(9)) for prompt in ([5], [6, 3]))
    engine.step()
    if kind == "nan":
        library.nan.add(1)
    else:
        first._detokenizer = Fails()  # type: ignore[assignment]
    with pytest.raises(RequestError if kind == "nan" else KeyError):
        engine.step()
    assert first.error is not None and first.finished
    while not second.finished:
        engine.step()
    assert second.generated == toy_greedy([6, 3], 9)
    assert engine.generate([[5]], greedy(9))[0].token_ids == toy_greedy([5], 9)
    assert not library.open and engine._pool.free == engine._pool.blocks


def test_a_step_that_could_not_be_waited_for_is_not_lost(tmp_path: Path) -> None:
    """As when someone presses Ctrl-C: the next call goes on where this one was."""
    engine, library = late_engine(tmp_path)
    request = engine.submit([5], greedy(6))
    engine.step()
    finish = library.finish

    def interrupted(ticket: int) -> Any:
        raise KeyboardInterrupt

    library.finish = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        engine.step()
    library.finish = finish  # type: ignore[method-assign]
    while not request.finished:
        engine.step()
    assert request.generated == toy_greedy([5], 6)


def test_seconds_of_steps_add_up_to_those_that_passed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where someone does something else while a step runs; a row that nobody wanted counts
    for nothing."""
    engine, library = late_engine(tmp_path)
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(
        "graphwright.runtime.stepper.time", SimpleNamespace(perf_counter=lambda: clock.now)
    )
    start, finish = library.start, library.finish

    def slow_start(*arguments: Any) -> int:
        clock.now += 1
        return start(*arguments)

    def slow_finish(ticket: int) -> Any:
        clock.now += 16
        return finish(ticket)

    monkeypatch.setattr(library, "start", slow_start)
    monkeypatch.setattr(library, "finish", slow_finish)
    first, second = (engine.submit(prompt, greedy(5)) for prompt in ([5, 2], [6, 3]))
    engine.step()
    engine.step()
    engine.cancel(first)
    while not second.finished:
        clock.now += 128
        engine.step()
    found = engine.statistics
    assert (found.prefill_tokens, found.decode_tokens) == (4, 2 + 3)
    assert (found.prefill_seconds, found.decode_seconds) == (18, 4 * 16 + 3 * 128 + 3)
    assert found.prefill_seconds + found.decode_seconds == clock.now - 100


PROMPT = st.builds(
    lambda length, first: [(first + 3 * i) % 97 for i in range(length)],
    st.sampled_from([1, 2, 4, 11, 25, 60]), st.one_of(st.integers(0, 96), st.integers(0, 1)),
)  # fmt: skip
EVENTS = events(PROMPT, GREEDY, GREEDY, GREEDY, drawn(6))


@cache
def alone(prompt: tuple[int, ...], params: SamplingParams) -> tuple[list[int], str, str]:
    """What a request says by itself, without overlap."""
    [output] = _PLAIN.generate([list(prompt)], params)
    return output.token_ids, output.text, output.finish_reason


@pytest.fixture(scope="module", autouse=True)
def plain() -> Any:
    global _PLAIN
    with tempfile.TemporaryDirectory() as folder:
        path = write_toy(
            Path(folder) / "plain.gw", tokenizer=word_tokenizer(),
            generation_config={"eos_token_id": EOS},
        )  # fmt: skip
        _PLAIN = Engine(path, library=ToyLibrary(), max_sequences=3)
        yield


_PLAIN: Engine


@settings(max_examples=150, deadline=None)
@given(EVENTS, st.booleans(), st.booleans())
def test_every_request_says_what_it_says_alone(
    happened: list[Any], overlaps: bool, prefix_cache: bool
) -> None:
    """Prompts often begin alike. The toy's logits depend on all that its cache holds, so that they
    differ where a block is shared that is not what it was taken for, or is written again.
    """
    library = LateToy() if overlaps else ToyLibrary("any")
    engine = Engine(_PLAIN.artifact, library=library, max_sequences=3, prefix_cache=prefix_cache)
    check_events(engine, happened, alone)
    assert not (isinstance(library, LateToy) and library.open)
