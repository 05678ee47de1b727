"""Guessed tokens over the toy model: all say what they say without them, in fewer steps."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from echo_toy import EchoToy, echo_greedy, echo_logits
from hypothesis import given, settings
from hypothesis import strategies as st
from late_toy import LateToy
from numpy.typing import NDArray
from request_events import ECHO_PROMPTS, GREEDY, check_events, drawn, events
from toy_model import (
    BLOCK,
    PLAN,
    VOCAB,
    Chooses,
    ToyLibrary,
    word_tokenizer,
    write_toy,
)

from graphwright.runtime.draws import Draw
from graphwright.runtime.engine import Engine
from graphwright.runtime.errors import RequestError
from graphwright.runtime.library import StepBuffers
from graphwright.runtime.sampling_params import SamplingParams
from graphwright.runtime.speculation import Drafter, LookupSpeculator, share

EOS = [7, 20, 33, 46, 59, 72, 85]  # many, so that sequences end in the middle
PROMPT = [11, 12, 13, 14, 15, 11, 12, 13]


def greedy(tokens: int, **options: Any) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, **options)


def echo_engine(
    folder: Path, speculate: str | None = "lookup", library: ToyLibrary | None = None,
    plan: dict[str, Any] | None = None, **options: Any,
) -> tuple[Engine, ToyLibrary]:  # fmt: skip
    library = library or EchoToy("largest")
    large = {**PLAN["weights"], "bytes_per_token": 10**9}  # so that guesses are worth trying
    path = write_toy(
        folder / "echo.gw", tokenizer=word_tokenizer(), generation_config={"eos_token_id": EOS},
        **{"weights": large, **(plan or {})},
    )  # fmt: skip
    return Engine(path, library=library, speculate=speculate, **options), library


def test_right_guesses_save_steps(tmp_path: Path) -> None:
    engine, library = echo_engine(tmp_path)
    [output] = engine.generate([PROMPT], greedy(40))
    assert output.token_ids == echo_greedy(PROMPT, 40)
    found = engine.statistics
    assert found.turns == len(library.steps) - 1 < 30, "the first one is the prompt's"
    assert found.decode_tokens == 39 and found.turns + found.accepted_tokens == 39
    assert 0 < found.drafts < found.turns and found.accepted_tokens <= found.drafted_tokens
    assert found.speculation() == {
        "drafted_tokens": found.drafted_tokens,
        "accepted_tokens": found.accepted_tokens,
        "tokens_per_step": round(39 / found.turns, 3),
        "draft_share": round(found.draft_seconds / found.decode_seconds, 3),
    }
    assert 0 < found.draft_seconds < found.decode_seconds
    for entry, tokens, sequences, rows in library.steps[1:]:
        assert (entry, sequences, rows) == ("decode", 1, tokens) and tokens <= 4
    assert sum(tokens for _, tokens, *_ in library.steps[1:]) == found.turns + found.drafted_tokens


def test_a_second_run_is_the_same_step_by_step(tmp_path: Path) -> None:
    engine, library = echo_engine(tmp_path)
    engine.generate([PROMPT, PROMPT[2:]], greedy(30))
    steps = list(library.steps)
    library.steps.clear()
    engine.generate([PROMPT, PROMPT[2:]], greedy(30))
    assert library.steps == steps


def test_the_most_tokens_of_a_guess(tmp_path: Path) -> None:
    for asked, most in (("lookup:1", 2), ("lookup:2", 3), ("lookup:3", 4)):
        engine, library = echo_engine(tmp_path, asked)
        [output] = engine.generate([[5] * 8], greedy(40))
        assert output.token_ids == echo_greedy([5] * 8, 40)
        assert max(tokens for _, tokens, *_ in library.steps[1:]) == most


@pytest.mark.parametrize("length", range(1, 6))
def test_nothing_is_computed_behind_the_last_token(tmp_path: Path, length: int) -> None:
    """Neither of max_tokens nor of the context, at whose end no block is left."""
    engine, library = echo_engine(tmp_path, context=24, max_sequences=1)
    prompt = [5] * (24 - length)
    for params in (greedy(length), greedy(99)):
        library.steps.clear()
        [output] = engine.generate([prompt], params)
        assert output.token_ids == echo_greedy(prompt, length)
        assert output.finish_reason == "length"
        assert max(rows for *_, rows in library.steps) <= max(1, length - 1)
    assert engine._pool.free == engine._pool.blocks


def test_logits_that_are_kept_are_those_of_the_tokens_that_were_said(tmp_path: Path) -> None:
    engine, _ = echo_engine(tmp_path)
    outputs = engine.generate([PROMPT, [9]], greedy(20), return_logits=True)
    for prompt, output in zip([PROMPT, [9]], outputs, strict=True):
        assert output.logits is not None and len(output.logits) == 20
        for number, row in enumerate(output.logits):
            assert (row == echo_logits([*prompt, *output.token_ids[:number]])).all()
    assert engine.statistics.accepted_tokens


def text_of(ids: list[int]) -> str:
    names = ["", "", " ", *(chr(code) for code in range(33, 125))]
    return "".join(names[i] for i in ids)


def test_a_stop_text_in_the_middle_of_a_run(tmp_path: Path) -> None:
    """What was computed behind it is nobody's, and the next prompt finds nothing of it."""
    engine, _ = echo_engine(tmp_path, prefix_cache=True, max_sequences=2)
    prompt = [40, 41, 42, 43, 44] * 2
    said = echo_greedy(prompt, 40)
    for at in range(8, 16):
        engine.statistics.__init__()  # type: ignore[misc]
        stop = text_of(said[at : at + 2])
        end = text_of(said).index(stop) + 2
        [output] = engine.generate([prompt], greedy(40, stop=stop))
        assert (output.token_ids, output.finish_reason) == (said[:end], "stop")
        assert output.text == text_of(said[: end - 2])
        assert engine.statistics.decode_tokens == end - 1
        longer = [*prompt, *said[: end + 3]]
        [output] = engine.generate([longer], greedy(9))
        assert output.token_ids == echo_greedy(longer, 9)
    assert engine._pool.free == engine._pool.blocks


class Scripted(ToyLibrary):
    """Says `script` whatever its cache holds."""

    def __init__(self, script: list[int], prompt: int) -> None:
        super().__init__("largest")
        self._script, self._prompt = script, prompt

    def logits_after(self, history: Any) -> NDArray[np.float32]:
        logits = np.zeros(VOCAB, np.float32)
        logits[self._script[max(0, len(history) - self._prompt)]] = 1
        return logits


@pytest.mark.parametrize("wrong", [False, True])
def test_end_of_text_among_guessed_tokens(tmp_path: Path, wrong: bool) -> None:
    """It was guessed, or it comes instead of a guess: the last token of the sequence either way,
    and blocks are kept only up to where their tokens are those that were computed."""
    prompt = [1, 2, 3, 4, 5, 6, 8, 9 if wrong else 7, 1, 2]  # the last token ends a block
    said = [3, 4, 5, 6, 8, 7]
    library = Scripted([*said, 1, 1, 1], len(prompt))
    engine, _ = echo_engine(tmp_path, library=library, prefix_cache=True)
    params = SamplingParams(temperature=0, max_tokens=9)
    [output] = engine.generate([prompt], params)
    assert (output.token_ids, output.finish_reason) == (said, "stop")
    assert library.steps[-1][1] == 4, "6, 8 and 7 were guessed, or 9"
    request = engine.submit([*prompt, *said, 9, 9], params)
    engine.step()
    known = request.sequence.reused
    assert known == (len(prompt) + len(said) - 1) // BLOCK * BLOCK
    cache = engine._buffers.kv.view(np.int64).reshape(-1, BLOCK, 2)
    assert request.sequence.table is not None
    blocks = request.sequence.table.tables[0].blocks[: known // BLOCK]
    assert cache[blocks, :, 0].ravel().tolist() == [*prompt, *said][:known]
    engine.cancel(request)


def test_an_error_among_guessed_tokens(tmp_path: Path) -> None:
    """The tokens before it are said, and the others have theirs."""

    class NanToy(EchoToy):
        bad = 0

        def logits_after(self, history: Any) -> NDArray[np.float32]:
            logits = super().logits_after(history)
            if history[0] == 5 and len(history) >= self.bad > 0:
                logits[3] = np.nan
            return logits

    library = NanToy("none")
    engine, _ = echo_engine(tmp_path, library=library)
    first, second = (engine.submit([token] * 9, greedy(30)) for token in (5, 6))
    library.bad = 9 + 12
    with pytest.raises(RequestError, match="NaN"):
        while engine.step():
            pass
    assert first.error is not None and first.generated == echo_greedy([5] * 9, 12)
    while not second.finished:
        engine.step()
    assert second.generated == echo_greedy([6] * 9, 30)
    assert engine._pool.free == engine._pool.blocks and not engine._stepper.requests


def test_a_step_that_was_interrupted_is_made_again(tmp_path: Path) -> None:
    class Interrupted(EchoToy):
        at = 5

        def run(
            self, entry: str, buffers: StepBuffers, draws: Sequence[Draw] = (), logits: bool = True
        ) -> NDArray[np.int32] | None:
            found = super().run(entry, buffers, draws, logits)
            if len(self.steps) in (5, 8, 9):
                raise KeyboardInterrupt
            return found

    engine, _ = echo_engine(tmp_path, library=Interrupted("largest"))
    request = engine.submit([5] * 9, greedy(30))
    interrupts = 0
    while not request.finished:
        try:
            engine.step()
        except KeyboardInterrupt:
            interrupts += 1
    assert interrupts == 3 and request.generated == echo_greedy([5] * 9, 30)


def test_sequences_share_the_rows_of_a_step(tmp_path: Path) -> None:
    """What is left of the entry `decode`; a step beside a prompt's chunk is as it was."""
    engine, library = echo_engine(tmp_path, max_sequences=4)
    prompts = [[5] * 9, [6] * 9, PROMPT]
    outputs = engine.generate(prompts, greedy(30))
    for prompt, output in zip(prompts, outputs, strict=True):
        assert output.token_ids == echo_greedy(prompt, 30)
    assert ("decode", 4, 3, 4) in library.steps, "one guessed token among three sequences"
    library.steps.clear()
    engine.submit([5] * 9, greedy(30))
    for _ in range(3):
        engine.step()
    engine.submit([6] * 40, greedy(30))
    library.steps.clear()
    for _ in range(4):
        engine.step()
    assert library.steps == [("prefill", 10, 2, 1)] * 4


@pytest.mark.parametrize("decode", [{"max_tokens": 8, "max_rows": 2}, {"max_tokens": 1}])
def test_small_budgets_of_the_entry(tmp_path: Path, decode: dict[str, int]) -> None:
    entries = {**PLAN["entries"], "decode": {**PLAN["entries"]["decode"], **decode}}
    plan = {"entries": entries}
    limit = min(entries["decode"]["max_tokens"], entries["decode"]["max_rows"]) - 1
    if not limit:
        with pytest.raises(RequestError, match="steps of several tokens"):
            echo_engine(tmp_path, plan=plan)
        return
    with pytest.raises(RequestError, match=r"N from 1 to 1, not 'lookup:2'"):
        echo_engine(tmp_path, "lookup:2", plan=plan)

    class Rows(EchoToy):
        def run(
            self, entry: str, buffers: StepBuffers, draws: Sequence[Draw] = (), logits: bool = True
        ) -> NDArray[np.int32] | None:
            assert entry == "prefill" or buffers.batch[3] <= 2
            PLAN["entries"], kept = entries, PLAN["entries"]
            try:
                return super().run(entry, buffers, draws, logits)
            finally:
                PLAN["entries"] = kept

    engine, library = echo_engine(tmp_path, library=Rows("largest"), plan=plan)
    [output] = engine.generate([[5] * 9], greedy(30))
    assert output.token_ids == echo_greedy([5] * 9, 30)
    assert max(rows for *_, rows in library.steps) == 2


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (
            "ngram",
            r"speculate must be 'lookup' or 'draft:FILE', either with .* 1 to 3, not 'ngram'",
        ),
        ("lookup:0", "not 'lookup:0'"),
        ("lookup:4", "not 'lookup:4'"),
        ("lookup:", "not 'lookup:'"),
        ("lookup:-1", "not 'lookup:-1'"),
        ("lookup:1:2", "not 'lookup:1:2'"),
        ("", "not ''"),
        ("draft", "not 'draft'"),
        ("draft:", "not 'draft:'"),
        ("draft:small.gw:4", "not 'draft:small.gw:4'"),
    ],
)
def test_what_cannot_be_asked_for(tmp_path: Path, asked: str, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        echo_engine(tmp_path, asked)


@pytest.mark.parametrize("kv", [{"slot_bytes": 64}, {"rolling": ["conv"]}], ids=str)
def test_states_cannot_go_back(tmp_path: Path, kv: dict[str, Any]) -> None:
    plan = {"kv": {**PLAN["kv"], **kv}}
    with pytest.raises(RequestError, match=r"recurrent or rolling states.*Leave speculate out"):
        echo_engine(tmp_path, plan=plan)
    echo_engine(tmp_path, None, plan=plan)


def test_where_steps_overlap_nothing_is_guessed(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"speculation is for CPUs: on a GPU"):
        echo_engine(tmp_path, library=LateToy())


class Rambling(ToyLibrary):
    """Every pair of tokens comes again, always with another token behind it."""

    def logits_after(self, history: Any) -> NDArray[np.float32]:
        logits = np.zeros(VOCAB, np.float32)
        number = len(history) - 3
        logits[(1, 2, 3 + number // 3 % 90)[number % 3]] = 1
        return logits


def test_where_guesses_are_wrong_they_cease(tmp_path: Path) -> None:
    """And no text costs more than its guesses before that."""
    engine, library = echo_engine(tmp_path, library=Rambling("largest"), plan={"max_context": 1024})
    engine.generate([[1, 2, 3]], greedy(250))
    found = engine.statistics
    assert found.accepted_tokens <= 2 and found.drafted_tokens < 40
    assert all(tokens == 1 for _, tokens, *_ in library.steps[-100:])


def test_a_small_model_guesses_less(tmp_path: Path) -> None:
    """Its weights stay in caches, or are less than what a token reads of keys and values, so that a
    step of several tokens saves less."""
    drafted = []
    for size in (100, 15_999_999, 16_000_000):
        weights = {**PLAN["weights"], "bytes_per_token": size}
        engine, _ = echo_engine(tmp_path, plan={"weights": weights})
        [output] = engine.generate([PROMPT], greedy(40))
        assert output.token_ids == echo_greedy(PROMPT, 40)
        drafted.append(engine.statistics.drafted_tokens)
    assert 0 < drafted[0] < drafted[1] < drafted[2]


def test_a_drafter_learns_from_guesses_that_were_not_computed() -> None:
    tokens = [1, 2, 3]
    drafter = Drafter(tokens)
    assert drafter.look() == 0
    hopes = []
    for number in range(60):
        tokens += [1, 2]
        hopes.append(drafter.look())
        tokens.append(3 + number if number < 30 else 32)
        drafter.look()
    assert 0 < hopes[29] < 0.05 < 0.2 == hopes[0]
    assert hopes[59] > 0.5, "and notices when the text begins to repeat itself"


@given(
    st.lists(st.tuples(st.floats(0.01, 0.999), st.integers(1, 7)), min_size=1, max_size=4),
    st.integers(0, 7), st.integers(4, 5), st.integers(5, 8), st.sampled_from([0.02, 0.125, 0.375]),
)  # fmt: skip
def test_the_likeliest_tokens_are_added_as_long_as_they_pay(
    hopes: list[tuple[float, int]], spare: int, said: int, tokens: int, each: float
) -> None:
    """What a step says for what it costs is the most that any lengths give, up to rounding."""

    def worth(lengths: tuple[int, ...] | list[int]) -> float:
        gain = sum(
            hope**k for (hope, _), n in zip(hopes, lengths, strict=True) for k in range(1, n + 1)
        )
        return (said + gain) / (1 + each * (tokens - 1 + sum(lengths)))

    found = share(hopes, spare, said, 1 + each * (tokens - 1), each)
    assert sum(found) <= spare
    assert all(0 <= n <= most for n, (_, most) in zip(found, hopes, strict=True))
    ways = itertools.product(*(range(most + 1) for _, most in hopes))
    best = max(worth(way) for way in ways if sum(way) <= spare)
    assert worth(found) >= best * (1 - 1e-12)


EVENTS = events(ECHO_PROMPTS, GREEDY, drawn(30))


@cache
def alone(prompt: tuple[int, ...], params: SamplingParams) -> tuple[list[int], str, str]:
    """What a request says by itself, without guesses."""
    [output] = _PLAIN.generate([list(prompt)], params)
    return output.token_ids, output.text, output.finish_reason


@pytest.fixture(scope="module", autouse=True)
def plain() -> Iterator[None]:
    global _PLAIN
    with tempfile.TemporaryDirectory() as folder:
        _PLAIN, _ = echo_engine(Path(folder), None, EchoToy("none"), max_sequences=3)
        yield


_PLAIN: Engine


@settings(max_examples=150, deadline=None)
@given(EVENTS, st.booleans(), st.sampled_from(["none", "largest", "any"]))
def test_every_request_says_what_it_says_alone(
    happened: list[Any], prefix_cache: bool, chooses: Chooses
) -> None:
    """The logits depend on all that the cache holds, so that they differ where a guessed token was
    left in it, and a drawn token differs where a random number went to a token that nobody saw."""
    library = EchoToy(chooses)
    engine = Engine(
        _PLAIN.artifact, library=library, max_sequences=3, prefix_cache=prefix_cache,
        speculate="lookup",
    )  # fmt: skip
    check_events(engine, happened, alone)
    speculator = engine._stepper._speculator
    assert isinstance(speculator, LookupSpeculator) and not speculator._drafters
