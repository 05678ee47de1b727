"""Blocks of an earlier prompt that begins alike are used again, and nothing else is."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_model import BLOCK, ToyLibrary, toy_engine, toy_greedy, write_toy

from graphwright.runtime.cache_pools import CachePools, SequenceTables
from graphwright.runtime.engine import Engine
from graphwright.runtime.kv_cache import BlockPool, BlockTable
from graphwright.runtime.plan import Reach
from graphwright.runtime.prefix_cache import PrefixCache
from graphwright.runtime.sampling_params import SamplingParams

FIRST = list(range(3, 3 + 3 * BLOCK))  # three whole blocks


def greedy(tokens: int = 2) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=tokens)


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    return Engine(
        write_toy(tmp_path / "toy.gw"), library=ToyLibrary(), max_sequences=2, prefix_cache=True
    )


def reused(engine: Engine, prompt: list[int], tokens: int = 2) -> int:
    """Positions that were not computed again; what is said must be right."""
    request = engine.submit(prompt, greedy(tokens))
    while not request.finished:
        engine.step()
    assert request.generated == toy_greedy(prompt, tokens)
    return request.sequence.reused


def test_whole_blocks_are_used_again_but_the_last_token_is_computed(engine: Engine) -> None:
    assert reused(engine, FIRST) == 0
    assert reused(engine, FIRST) == 2 * BLOCK
    assert reused(engine, [*FIRST, 1]) == 3 * BLOCK
    assert reused(engine, FIRST[: BLOCK + 1]) == BLOCK
    assert reused(engine, [*FIRST[:BLOCK], 90, *FIRST[BLOCK:]]) == BLOCK
    assert reused(engine, FIRST[1:]) == 0
    assert reused(engine, FIRST[BLOCK:]) == 0, "the same tokens at other positions"


def test_a_turn_goes_on_behind_the_answer_before_it(engine: Engine) -> None:
    assert reused(engine, FIRST, tokens=6) == 0
    said = toy_greedy(FIRST, 6)
    # of the last token that was said no keys were computed
    assert reused(engine, [*FIRST, *said, 7, 8]) == (len(FIRST) + 5) // BLOCK * BLOCK


def test_running_requests_share_and_the_shared_outlives_its_first_holder(engine: Engine) -> None:
    first = engine.submit(FIRST, greedy(9))
    engine.step()
    engine.step()
    second = engine.submit([*FIRST, 5], greedy(9))
    engine.step()
    assert second.sequence.reused == 3 * BLOCK
    engine.cancel(first)
    third = engine.submit([*FIRST, 6], greedy(9))
    while not (second.finished and third.finished):
        engine.step()
    assert second.generated == toy_greedy([*FIRST, 5], 9)
    assert third.generated == toy_greedy([*FIRST, 6], 9)
    assert engine._pool.free == engine._pool.blocks


def computed(engine: Engine) -> int:
    library = engine.library
    assert isinstance(library, ToyLibrary)
    return sum(tokens for _, tokens, *_ in library.steps)


def test_prompts_that_come_together_are_computed_once(tmp_path: Path) -> None:
    """Also where one of them needs several steps, and others come between."""
    long = [5 + i for i in range(7 * BLOCK)]
    prompts = [[*long, 1], [*long, 2, 3], [90, 91], [*long, 4], long, [*long[: 4 * BLOCK], 9]]
    together, apart = (
        Engine(write_toy(tmp_path / "toy.gw"), library=ToyLibrary(), max_sequences=4,
               prefix_cache=cached)
        for cached in (True, False)
    )  # fmt: skip
    params = greedy(3)
    expected = [toy_greedy(prompt, 3) for prompt in prompts]
    for engine in (together, apart):
        assert [each.token_ids for each in engine.generate(prompts, params)] == expected
    says = 2 * len(prompts)  # tokens that are computed after the prompts
    assert computed(apart) == sum(map(len, prompts)) + says
    # long once, the last block of it once more, and what is behind
    assert computed(together) == len(long) + BLOCK + (1 + 2 + 2 + 1 + 1) + says
    assert together._pool.free == together._pool.blocks


def test_who_waits_goes_on_when_the_other_is_cancelled(tmp_path: Path) -> None:
    long = [5 + i for i in range(6 * BLOCK)]
    engine = Engine(
        write_toy(tmp_path / "toy.gw"), library=ToyLibrary(), max_sequences=3, prefix_cache=True
    )
    first = engine.submit([*long, 1], greedy())
    second, third = (engine.submit([*long, each], greedy()) for each in (2, 3))
    engine.step()
    assert first.sequence.computed == 10 and second.sequence.table is None
    engine.cancel(first)
    while not (second.finished and third.finished):
        engine.step()
    assert second.sequence.reused == 2 * BLOCK, "what the first one has computed by then"
    assert third.sequence.reused == 6 * BLOCK
    assert [second.generated, third.generated] == [toy_greedy([*long, n], 2) for n in (2, 3)]


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 40), st.lists(st.integers(0, 1), min_size=1, max_size=8),
                  st.integers(0, 3)), min_size=1, max_size=8),
    st.integers(1, 4),
)  # fmt: skip
def test_all_say_what_they_say_alone(
    asked: list[tuple[int, list[int], int]], sequences: int
) -> None:
    """Each with some of a common beginning, tokens behind it, and steps before it comes."""
    common = [5 + i for i in range(40)]
    with tempfile.TemporaryDirectory() as folder:
        engine = Engine(
            write_toy(Path(folder) / "toy.gw"), library=ToyLibrary(), max_sequences=sequences,
            prefix_cache=True,
        )  # fmt: skip
        requests = []
        for count, more, steps in asked:
            for _ in range(steps):
                engine.step()
            prompt = [*common[:count], *more]
            requests.append((prompt, engine.submit(prompt, greedy(3))))
        while engine.step():
            pass
        for prompt, request in requests:
            assert request.finished and request.generated == toy_greedy(prompt, 3)
        assert engine._pool.free == engine._pool.blocks


def test_what_was_free_the_longest_is_forgotten_first_from_its_end(tmp_path: Path) -> None:
    """Five blocks for one sequence: the second prompt needs two of them beside the three kept."""
    path = write_toy(tmp_path / "toy.gw", max_context=5 * BLOCK)
    engine = Engine(path, library=ToyLibrary(), max_sequences=1, prefix_cache=True)
    assert engine._pool.blocks == 5
    assert reused(engine, [*FIRST, 1]) == 0
    assert reused(engine, [50 + i for i in range(3 * BLOCK)], tokens=1) == 0
    assert reused(engine, [*FIRST, 1]) == 2 * BLOCK


def test_all_rows_of_a_prompt_are_computed(engine: Engine) -> None:
    before = engine.logits([*FIRST, 1])
    assert (engine.logits([*FIRST, 1]) == before).all() and len(before) == len(FIRST) + 1
    assert reused(engine, [*FIRST, 1]) == 3 * BLOCK, "they are kept, though"


def test_without_it_nothing_is_reused(tmp_path: Path) -> None:
    engine, _ = toy_engine(tmp_path)
    assert [reused(engine, FIRST) for _ in range(2)] == [0, 0]


REACHES = st.none() | st.builds(Reach, first=st.integers(0, 3), span=st.integers(1, 6))


@settings(max_examples=300, deadline=None)
@given(
    st.lists(REACHES, min_size=1, max_size=3),
    st.lists(
        st.tuples(st.integers(0, 2), st.lists(st.integers(0, 1), max_size=9), st.booleans()),
        max_size=40,
    ),
)
def test_shared_blocks_are_what_they_are_taken_for_and_nobody_writes_them(
    reaches: list[Reach | None], events: list[tuple[int, list[int], bool]]
) -> None:
    """Three sequences of up to five blocks in pools for just that: (sequence, tokens that follow,
    does it end?). Content is what was written last; what the next token reads must be right.
    """
    pools = tuple(BlockPool(15, 0) for _ in reaches)
    caches = CachePools(pools, tuple(reaches), 2, 5)
    cache = PrefixCache(caches)
    content: list[dict[int, list[int]]] = [{} for _ in pools]
    running: dict[int, tuple[SequenceTables, list[int]]] = {}
    for number, more, ends in events:
        if number not in running:
            running[number] = caches.tables(), []
            tables, tokens = running[number]
            computed = cache.adopt(tables, more)
            assert computed == 0 or computed < len(more)
        else:
            tables, tokens = running[number]
            computed = len(tokens)
        tokens += more[: 10 - len(tokens)]
        tables.grow(len(tokens))
        for own, table in zip(content, tables.tables, strict=True):
            place = tables.tables.index(table)
            others = [each.tables[place] for n, (each, _) in running.items() if n != number]
            taken = {block for other in others for block in read_again(other, 0).values()}
            for position in range(computed, len(tokens)):
                block = int(table.blocks[position // 2])
                assert block not in taken, "it is written while shared"
                before = own.get(block, []) if position % 2 else []
                own[block] = [*before, tokens[position]]
        for each, said in running.values():
            for own, table in zip(content, each.tables, strict=True):
                for i, block in read_again(table, len(said)).items():
                    assert own[block] == said[2 * i : 2 * i + 2]
        if len(tokens) % 3 == 0:
            cache.keep(tables, tokens, len(tokens))
            tables.drop(len(tokens))
        for place, pool in enumerate(pools):
            held = {b for each, _ in running.values() for b in kept(each.tables[place])}
            assert pool.free == 15 - len(held)
        if ends:
            cache.keep(tables, tokens, len(tokens))
            tables.release()
            del running[number]


def kept(table: BlockTable) -> list[int]:
    """The blocks that a table holds."""
    blocks = table.blocks.tolist()
    return [*blocks[: table._kept], *blocks[table.dropped :]]


def read_again(table: BlockTable, computed: int) -> dict[int, int]:
    """By number, the blocks that it holds and that a token at `computed` or later can read."""
    first, end = table.unread(computed)
    end = max(end, table.dropped)
    return {
        number: block
        for number, block in enumerate(table.blocks.tolist())
        if not (first if end > first else end) <= number < end
    }


def test_blocks_with_tokens_that_nobody_knows_yet_are_not_kept() -> None:
    """A step that runs ahead computes one that is not known."""
    pools = CachePools((BlockPool(4, 0),), (None,), 2, 4)
    cache, table = PrefixCache(pools), pools.tables()
    table.grow(4)
    cache.keep(table, [1, 2, 3], 4)
    assert table.known == 1
    cache.keep(table, [1, 2, 3, 4], 3)
    assert table.known == 1
    cache.keep(table, [1, 2, 3, 4], 4)
    assert table.known == 2


def test_a_prefix_that_was_forgotten_is_not_found_through_what_follows_it() -> None:
    pools = CachePools((BlockPool(3, 0),), (None,), 1, 3)
    cache = PrefixCache(pools)

    def run(tokens: list[int]) -> tuple[int, list[int]]:
        table = pools.tables()
        found = cache.adopt(table, tokens)
        table.grow(len(tokens))
        cache.keep(table, tokens, len(tokens))
        blocks = table.tables[0].blocks.tolist()
        table.release()
        return found, blocks

    assert run([1, 2, 3])[0] == 0
    found, kept = run([1, 2, 9])
    assert found == 2
    assert run([4]) == (0, [kept[2]]), "the end of what is kept goes first"
    assert run([1, 2, 9])[0] == 2
    assert run([7, 7, 7])[0] == 0
    assert run([1, 2, 9])[0] == 0
    assert pools.free == 3


def windows(whole: int, small: int) -> tuple[CachePools, PrefixCache]:
    """Pools of so many blocks of one position: of layers that see everything, and of a window of
    three."""
    sizes = BlockPool(whole, 0), BlockPool(small, 0)
    pools = CachePools(sizes, (None, Reach(first=0, span=3)), 1, 20)
    return pools, PrefixCache(pools)


def said(pools: CachePools, cache: PrefixCache, tokens: list[int]) -> int:
    """A sequence, token by token, from its prompt `tokens` on; how many were not computed."""
    tables = pools.tables()
    found = cache.adopt(tables, tokens)
    for computed in range(found, len(tokens) + 1):
        if computed >= tables.drops_at:
            cache.keep(tables, tokens, computed)
            tables.drop(computed)
        tables.grow(min(computed + 1, len(tokens)))
    cache.keep(tables, tokens, len(tokens))
    tables.release()
    return found


def test_of_a_window_only_what_the_next_token_reads_must_be_there() -> None:
    pools, cache = windows(40, 4)
    text = list(range(10))
    assert said(pools, cache, text) == 0
    assert said(pools, cache, [*text, 10]) == 10, "the window before it is there"
    assert said(pools, cache, [*text[:7], 99]) == 0, "the one before the seventh token is not"
    assert said(pools, cache, [*text[:7], 99, 98]) == 8
    assert pools.free == 44


def test_a_shorter_prefix_is_taken_where_the_window_before_a_longer_one_is_gone() -> None:
    pools, cache = windows(40, 20)
    text = list(range(10))
    assert said(pools, cache, text) == 0
    assert said(pools, cache, [*text[:5], 77]) == 5
    # takes the nine free blocks, and eight that nobody has used since the text was said
    assert said(pools, cache, list(range(50, 67))) == 0
    assert said(pools, cache, [*text, 10]) == 5
    assert pools.free == 60


def test_prefixes_are_forgotten_with_the_last_block_of_them() -> None:
    pools, cache = windows(12, 4)
    for start in range(0, 300, 10):
        assert said(pools, cache, list(range(start, start + 10))) == 0
        assert len(cache._found) <= 12 + 4
    held = {prefix for blocks in cache._of_blocks for prefix in blocks.values()}
    above = {prefix.parent for prefix in cache._found.values()}
    assert set(cache._found.values()) == (held | above) - {None, cache.root(None)}
