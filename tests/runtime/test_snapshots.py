"""Prompts that begin alike, for models with states: those are copied, and go on as they were.

The library asserts at each token that slot, first block and cache hold what the sequence has said.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from late_toy import LateToy
from state_toy import KINDS, said_after, state_engine
from toy_model import BLOCK, MAX_CONTEXT, write_toy

from graphwright.runtime.cache_pools import Prefix
from graphwright.runtime.engine import Engine
from graphwright.runtime.errors import RequestError
from graphwright.runtime.request import Request
from graphwright.runtime.sampling_params import SamplingParams
from graphwright.runtime.snapshots import Snapshots

LONG = list(range(5, 5 + 8 * BLOCK))  # eight whole blocks
WORTH = 4 * BLOCK  # tokens that a step of its own must save


def greedy(tokens: int = 2) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=tokens)


def said(engine: Engine, kind: str, prompt: list[int], tokens: int = 2) -> tuple[int, list[int]]:
    """(positions that were not computed again, the whole text); what is said must be right."""
    request = engine.submit(prompt, greedy(tokens))
    while not request.finished:
        engine.step()
    assert request.generated == said_after(kind, prompt, tokens)
    return request.sequence.reused, [*prompt, *request.generated]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("late", [False, True])
def test_the_next_turn_begins_where_the_text_ended(tmp_path: Path, kind: str, late: bool) -> None:
    """At any position: the block that was begun is copied, too."""
    engine = state_engine(tmp_path, kind, late=late, max_sequences=1)
    for extra in range(BLOCK):
        text = [90 + extra, *LONG[: 6 + extra]]
        begun, text = said(engine, kind, text, 3)
        assert begun == 0
        for turn in range(3):
            said(engine, kind, [70 + turn] * 9, 3)  # in the same blocks
            length = len(text)
            begun, text = said(engine, kind, [*text, 1, 2], 5)
            assert begun == length - 1, "the last token of a text was not computed"


@pytest.mark.parametrize("kind", KINDS)
def test_instructions_are_known_from_the_third_prompt_on(tmp_path: Path, kind: str) -> None:
    """The first one does not know where others will depart; the second one leaves a snapshot."""
    engine = state_engine(tmp_path, kind, max_sequences=4)
    questions = [[first, *LONG[:20]] for first in (50, 51, 52, 53)]
    begun = [said(engine, kind, [*LONG, *question])[0] for question in questions]
    assert begun == [0, 0, len(LONG), len(LONG)]
    again, _ = said(engine, kind, [*LONG, *questions[0]])
    near_end = (len(LONG) + 21 - BLOCK // 2) // BLOCK * BLOCK
    # where all attention has windows, the pool is small, and forgets the ends of texts
    assert again == (len(LONG) if "window" in KINDS[kind] else near_end)


@pytest.mark.parametrize("kind", KINDS)
def test_instructions_of_prompts_that_come_together_are_computed_once(
    tmp_path: Path, kind: str
) -> None:
    engine = state_engine(tmp_path, kind, max_sequences=4)
    prompts = [[*LONG, first, *LONG[:7]] for first in (50, 51, 52)] + [[*LONG, 50, 1]]
    requests = [engine.submit(prompt, greedy()) for prompt in prompts]
    while engine.step():
        pass
    for prompt, request in zip(prompts, requests, strict=True):
        assert request.generated == said_after(kind, prompt, 2)
    assert [each.sequence.reused for each in requests] == [0] + [len(LONG)] * 3


@pytest.mark.parametrize("kind", KINDS)
def test_choices_of_one_request_share_their_prompt(tmp_path: Path, kind: str) -> None:
    prompt = [*LONG, 50, 51]
    engine = state_engine(tmp_path, kind, max_sequences=3)
    outputs = engine.generate([prompt] * 3, greedy(5))
    assert [each.token_ids for each in outputs] == [said_after(kind, prompt, 5)] * 3
    near_end = (len(prompt) - BLOCK // 2) // BLOCK * BLOCK
    assert engine.statistics.prefill_tokens == len(prompt) + 2 * (len(prompt) - near_end)


def test_what_a_template_adds_at_the_end_of_a_prompt_does_not_matter(tmp_path: Path) -> None:
    """As with models that think: of the answer only a part stays in the next prompt."""
    engine = state_engine(tmp_path, "hybrid", max_sequences=1)
    begun, _ = said(engine, "hybrid", [*LONG, 77, 78], 9)
    assert begun == 0
    begun, _ = said(engine, "hybrid", [*LONG, 77, 3, 4, 5], 4)
    assert begun == len(LONG)


def test_short_prompts_take_no_step_more(tmp_path: Path) -> None:
    for length, stops in ((WORTH - 1, 0), (WORTH + 1, 0), (WORTH + BLOCK // 2, 1)):
        engine = state_engine(tmp_path, "hybrid")
        request = engine.submit(LONG[:length], greedy())
        engine._scheduler._admit()
        assert request.sequence.stops is not None
        assert len(request.sequence.stops.ahead) == stops


def test_the_oldest_snapshot_goes_first(tmp_path: Path) -> None:
    engine = state_engine(tmp_path, "both", max_sequences=1, snapshots=2)
    texts = [said(engine, "both", [first, *LONG[:7]], 4)[1] for first in (50, 51)]
    assert said(engine, "both", [*texts[0], 9], 1)[0] == 11
    said(engine, "both", [52, *LONG[:7]], 4)
    assert said(engine, "both", [*texts[0], 9], 1)[0] == 11
    assert said(engine, "both", [*texts[1], 9], 1)[0] == 0


def test_a_snapshot_is_worth_nothing_without_its_blocks(tmp_path: Path) -> None:
    """Other texts need all blocks: of the cache in between nothing is left."""
    engine = state_engine(tmp_path, "hybrid", max_sequences=1, snapshots=9)
    _, text = said(engine, "hybrid", LONG, 3)
    assert said(engine, "hybrid", [*text, 1], 1)[0] == len(text) - 1
    beginnings = engine._scheduler._beginnings
    assert beginnings is not None and beginnings._states is not None
    states = beginnings._states
    assert len(states) == 2, "near the end and at the end"
    for first in (60, 70):
        said(engine, "hybrid", [first] * (MAX_CONTEXT - 2), 2)
    assert len(states) == 1, "those of forgotten prefixes make room"
    assert said(engine, "hybrid", [*text, 1], 1)[0] == 0
    assert engine._pool.free == engine._pool.blocks


def test_blocks_out_of_reach_make_room_for_what_is_copied(tmp_path: Path) -> None:
    """A long beginning is shared whole for a moment, beside one whose step has just taken blocks;
    the block that was begun needs one more."""
    engine = state_engine(tmp_path, "window", max_sequences=2)
    assert engine._pool.blocks == 13
    _, text = said(engine, "window", [*LONG[:-1], 1, 2], 3)
    requests = [engine.submit([*text, *range(40, 55)], greedy(3))]
    engine.step()
    requests.append(engine.submit([*text, 9], greedy(3)))
    while not all(request.finished for request in requests):
        engine.step()
    for request in requests:
        assert request.sequence.reused == len(text) - 1
        prompt = request.sequence.tokens[: request.sequence.prompt_length]
        assert request.generated == said_after("window", prompt, 3)


def test_what_follows_another_beginning_is_another_text(tmp_path: Path) -> None:
    """Of the first block nothing is kept but its tokens."""
    engine = state_engine(tmp_path, "hybrid", max_sequences=3)
    said(engine, "hybrid", [1] * BLOCK + LONG)
    assert said(engine, "hybrid", [2] * BLOCK + LONG)[0] == 0


def test_one_that_is_cancelled_is_gone_on_with(tmp_path: Path) -> None:
    engine = state_engine(tmp_path, "hybrid", max_sequences=1)
    request = engine.submit(LONG, greedy(9))
    engine.step()
    engine.cancel(request)
    computed = request.sequence.computed
    assert 0 < computed < len(LONG)
    assert said(engine, "hybrid", LONG)[0] == computed


def test_a_token_that_nobody_knows_leaves_no_snapshot(tmp_path: Path) -> None:
    """The step behind one that failed has run on the states before anybody noticed."""
    engine = state_engine(tmp_path, "hybrid", late=True, max_sequences=1)
    assert isinstance(engine.library, LateToy)
    engine.library.nan = {1}
    request = engine.submit(LONG[:9], greedy(9))
    with pytest.raises(RequestError, match="NaN"):
        while not request.finished:
            engine.step()
    assert request.sequence.computed > len(request.sequence.tokens)
    assert said(engine, "hybrid", [*request.sequence.tokens, 1, 2])[0] == 0


def test_all_rows_are_computed_and_leave_nothing(tmp_path: Path) -> None:
    engine = state_engine(tmp_path, "hybrid", max_sequences=1)
    before = engine.logits(LONG)
    assert (engine.logits(LONG) == before).all() and len(before) == len(LONG)
    assert said(engine, "hybrid", [*LONG, 1])[0] == 0


def test_without_places_nothing_is_shared(tmp_path: Path) -> None:
    engine = state_engine(tmp_path, "hybrid", snapshots=0)
    assert [said(engine, "hybrid", LONG)[0] for _ in range(3)] == [0, 0, 0]
    engine = state_engine(tmp_path, "hybrid", prefix_cache=False)
    assert [said(engine, "hybrid", LONG)[0] for _ in range(3)] == [0, 0, 0]


@pytest.mark.parametrize("snapshots", [None, 0, 3])
def test_memory_is_that_of_the_plan(tmp_path: Path, snapshots: int | None) -> None:
    engine = state_engine(tmp_path, "hybrid", max_sequences=2, snapshots=snapshots)
    without = state_engine(tmp_path, "hybrid", max_sequences=2, prefix_cache=False)
    assert engine.memory.allocated == engine.memory.planned
    more = engine.memory.allocated["kv"] - without.memory.allocated["kv"]
    assert more == (8 if snapshots is None else snapshots) * (192 + 2 * 128)


def test_wrong_numbers_are_sentences(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="snapshots must be 0 or more, not -1"):
        state_engine(tmp_path, "hybrid", snapshots=-1)
    with pytest.raises(
        RequestError, match="3 snapshots were asked for, and without a prefix cache"
    ):
        state_engine(tmp_path, "hybrid", snapshots=3, prefix_cache=False)
    plain = write_toy(tmp_path / "plain.gw")
    with pytest.raises(RequestError, match="neither recurrent nor rolling states to keep"):
        Engine(plain, snapshots=3, prefix_cache=True)


def test_the_longest_snapshot_is_found_by_prefix_and_rest() -> None:
    snapshots, root = Snapshots(3), Prefix(None, (), [])
    block = Prefix(root, (1, 2, 3, 4), [0])
    for prefix, rest, position in ((root, (1, 2), 2), (block, (), 4), (block, (5,), 5)):
        assert snapshots.add(prefix, rest, position) is not None
    assert snapshots.add(block, (), 4) is None, "it is there"
    known = [(0, root), (4, block)]
    found = snapshots.find([1, 2, 3, 4, 5, 6], known)
    assert found is not None and found.position == 5
    found = snapshots.find([1, 2, 3, 4, 5], known)
    assert found is not None and found.position == 4, "the last token is computed"
    found = snapshots.find([1, 2, 9], known[:1])
    assert found is not None and found.position == 2
    snapshots.forget(block)
    assert len(snapshots) == 1 and snapshots.find([2, 2, 3, 4, 5, 6], known) is None


EVENTS = st.lists(
    st.tuples(
        st.integers(-1, 3),  # the text that is gone on with; -1: a new one
        st.lists(st.integers(3, 4), min_size=1, max_size=30),  # many that begin alike
        st.integers(1, 12),  # tokens that are said
        st.integers(0, 9),  # steps until the next event
        st.booleans(),  # is it cancelled then?
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(KINDS)), EVENTS, st.booleans(), st.integers(1, 6), st.integers(1, 3))
def test_conversations_in_any_order_say_what_they_say_alone(
    kind: str, events: list[Any], late: bool, snapshots: int, sequences: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        engine = state_engine(
            Path(folder), kind, late=late, snapshots=snapshots, max_sequences=sequences
        )
        check_conversations(engine, kind, events)


def check_conversations(engine: Engine, kind: str, events: list[Any]) -> None:
    texts: list[list[int]] = [[] for _ in range(4)]
    asked: list[tuple[int, list[int], Request, int]] = []
    for number, (text, more, tokens, steps, cancelled) in enumerate(events):
        prompt = [*(texts[text] if text >= 0 else []), *more][: MAX_CONTEXT - 12]
        request = engine.submit(prompt, greedy(tokens))
        asked.append((text if text >= 0 else number % 4, prompt, request, tokens))
        for _ in range(steps):
            engine.step()
        if cancelled and not request.finished:
            engine.cancel(request)
            assert request.generated == said_after(kind, prompt, len(request.generated))
            texts[asked.pop()[0]] = [*prompt, *request.generated]
        for place, own, each, _ in asked:
            if each.finished:
                texts[place] = [*own, *each.generated]
    while not all(request.finished for *_, request, _ in asked):
        engine.step()
    for _, prompt, request, tokens in asked:
        assert request.generated == said_after(kind, prompt, tokens)
    engine._stepper.drop_ended()
    assert engine._pool.free == engine._pool.blocks
