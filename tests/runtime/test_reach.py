"""Blocks that no later token can read are given back, and only those."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from toy_model import BLOCK, MAX_CONTEXT, PLAN
from window_toy import pools_plan, window_engine, window_greedy

from graphwright.runtime.engine import Engine
from graphwright.runtime.kv_cache import BlockPool, BlockTable
from graphwright.runtime.plan import POOL_UNIT, Plan, PoolPlan, Reach
from graphwright.runtime.sampling_params import SamplingParams

BLOCKS = MAX_CONTEXT // BLOCK
REACHES = st.builds(Reach, first=st.integers(0, 9), span=st.integers(1, 30))
POOLS = st.lists(st.none() | REACHES, min_size=1, max_size=3)


def greedy(tokens: int) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=tokens)


def held(engine: Engine) -> int:
    return engine._pool.blocks - engine._pool.free


@settings(max_examples=100, deadline=None)
@given(
    POOLS,
    st.lists(
        st.tuples(
            st.lists(st.integers(0, 2), min_size=1, max_size=40),  # many that begin alike
            st.integers(1, 20),
            st.integers(0, 6),
        ),
        min_size=1,
        max_size=6,
    ),
    st.sampled_from(["", "late", "lookup"]),
    st.booleans(),
)
@example([Reach(first=0, span=1), Reach(first=5, span=1)], [([0], 5, 0)], "", True)
def test_nothing_that_is_read_is_missing_and_the_pool_is_large_enough(
    reaches: list[Reach | None],
    asked: list[tuple[list[int], int, int]],
    kind: str,
    prefix_cache: bool,
) -> None:
    """Requests come some steps after each other. The library asserts that what it reads is there;
    a pool that is too small is an assertion in BlockPool.
    """
    with tempfile.TemporaryDirectory() as folder:
        engine = window_engine(
            Path(folder), *reaches, late=kind == "late", max_sequences=3, prefix_cache=prefix_cache,
            speculate="lookup" if kind == "lookup" else None,
        )  # fmt: skip
        requests = []
        for prompt, tokens, steps in asked:
            requests.append(engine.submit(prompt, greedy(tokens)))
            for _ in range(steps):
                engine.step()
        while not all(request.finished for request in requests):
            engine.step()
        for request, (prompt, tokens, _) in zip(requests, asked, strict=True):
            assert request.generated == window_greedy(reaches, prompt, tokens)
        assert held(engine) == 0


@pytest.mark.parametrize("late", [False, True])
def test_a_text_that_grows_takes_no_more_blocks(tmp_path: Path, late: bool) -> None:
    reach = Reach(first=5, span=7)
    engine = window_engine(tmp_path, reach, late=late, max_sequences=1)
    assert engine._pool.blocks == 2 + 2 + 2 + 3, "first ones, a window, its ends, a step"
    request = engine.submit([1, 2], greedy(60))
    most = 0
    while not request.finished:
        engine.step()
        most = max(most, held(engine))
    assert request.generated == window_greedy([reach], [1, 2], 60)
    assert most == 5, "2 for the first tokens, 3 in which 7 positions and the next can lie"


def test_a_long_prefix_that_is_known_does_not_fill_the_pool(tmp_path: Path) -> None:
    """It is adopted whole, given back but for what its end reads, and stays known."""
    reach, prompt = Reach(first=0, span=6), [3] * 50
    engine = window_engine(tmp_path, reach, max_sequences=2, prefix_cache=True)
    for count in range(3):
        requests = [engine.submit([*prompt, number], greedy(5)) for number in range(2)]
        engine.step()
        assert held(engine) <= 2 * 3 + 3
        while not all(request.finished for request in requests):
            engine.step()
        for number, request in enumerate(requests):
            assert request.generated == window_greedy([reach], [*prompt, number], 5)
            if count and engine._pool.blocks > 50 // BLOCK:
                assert request.sequence.reused > 0


def test_layers_that_see_everything_keep_their_blocks_and_others_give_them_back(
    tmp_path: Path,
) -> None:
    reaches = None, Reach(first=0, span=7)
    engine = window_engine(tmp_path, *reaches, max_sequences=1)
    whole, window = engine._pool.pools
    assert (whole.blocks, window.blocks) == (BLOCKS, 2 + 2 + 3)
    request = engine.submit([1, 2], greedy(60))
    most = 0
    while not request.finished:
        engine.step()
        most = max(most, window.blocks - window.free)
    assert request.generated == window_greedy(reaches, [1, 2], 60)
    assert most == 3 and held(engine) == 0


def test_a_conversation_goes_on_where_only_its_window_is_left(tmp_path: Path) -> None:
    """Of the layers with windows the small pool keeps the end of the text, and that suffices."""
    reaches = None, Reach(first=0, span=7)
    engine = window_engine(tmp_path, *reaches, max_sequences=2, prefix_cache=True)
    tokens = list(range(3, 33))
    for said in (10, 5, 4):
        request = engine.submit(tokens, greedy(said))
        while not request.finished:
            engine.step()
        assert request.generated == window_greedy(reaches, tokens, said)
        assert request.sequence.reused == (0 if said == 10 else (len(tokens) - 1) // BLOCK * BLOCK)
        tokens = [*tokens, *request.generated]
    assert engine._pool.pools[1].blocks < len(tokens) // BLOCK + 8
    assert held(engine) == 0


def test_a_table_gives_every_block_back_once() -> None:
    pool = BlockPool(10, 0)
    table = BlockTable(pool, 2, 10, Reach(first=1, span=1))
    table.grow(12)
    assert table.drops_at == 4
    for computed in (0, 2, 3, 1):
        assert table.drop(computed) == 0
    assert pool.free == 4 and table.drops_at == 4
    assert table.drop(6) == 3
    assert table.drops_at == 8
    table.drop(6)
    assert pool.free == 6 and table.dropped == 3
    table.grow(16)
    assert pool.free == 4
    table.release()
    assert pool.free == 10
    assert sorted(pool.take(first=False) for _ in range(10)) == list(range(10))


@given(POOLS, st.integers(1, 6), st.integers(1, 200))
def test_pools_are_never_larger_than_without_a_window(
    reaches: list[Reach | None], sequences: int, blocks: int
) -> None:
    plan = Plan.from_json({**PLAN, "kv": pools_plan(reaches)})
    sizes, longer, longest = (
        plan.pool_sizes(sequences, each) for each in (blocks, blocks + 1, 10**6)
    )
    for number, reach in enumerate(reaches):
        assert sequences <= sizes[number] <= sequences * blocks
        if reach is None:
            assert sizes[number] == sequences * blocks
        else:
            assert sizes[number] <= longer[number]
            assert longest[number] < sequences * 20 + 10
    places = plan.pool_places(sizes)
    ends = [
        place * POOL_UNIT + size * BLOCK * 16 for place, size in zip(places, sizes, strict=True)
    ]
    assert all(end <= POOL_UNIT * place for end, place in zip(ends, places[1:], strict=False))
    assert plan.kv_bytes(sequences, sizes) == (0, ends[-1])


def test_a_plan_without_a_reach_is_read_as_ever() -> None:
    plan = Plan.from_json(PLAN)
    assert plan.pools == (PoolPlan(BLOCK * 16),) and plan.pool_sizes(3, BLOCKS) == (48,)
