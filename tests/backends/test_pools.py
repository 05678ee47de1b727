"""Which caches share a pool of blocks, and where their parts lie in it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from hypothesis import given
from hypothesis import strategies as st

from graphwright.backends import rows
from graphwright.backends.pools import Pool, Reach, pools_of
from graphwright.backends.triton.kv_layout import KvLayout as GpuLayout
from graphwright.backends.tvm.kv_layout import KvLayout
from graphwright.ir.masks import Mask
from graphwright.ir.states import ConvState, IndexState, KVState, RecurrentState, State
from graphwright.runtime import plan

CONTEXT = 4096


def cache(number: int, mask: str = "causal", dim: int = 16, chosen: int = 0) -> KVState:
    return KVState(f"kv{number}", 2, dim, dim, torch.float32, Mask.parse(mask), chosen)


def reaches(states: Sequence[State], context: int | None = CONTEXT) -> list[tuple[int, int | None]]:
    return [(p.reach.first, p.reach.span) for p in pools_of(states, 16, context)]


def test_layers_that_see_everything_come_first() -> None:
    windows = [cache(n, "causal & window(512)") for n in range(5)]
    assert pools_of([*windows, cache(5)], 16, CONTEXT) == (
        Pool(("kv5",), Reach()),
        Pool(tuple(f"kv{n}" for n in range(5)), Reach(0, 512)),
    )


def test_one_kind_of_layer_has_one_pool() -> None:
    assert pools_of([cache(0), cache(1)], 16, CONTEXT) == (Pool(("kv0", "kv1"), Reach()),)
    masks = "causal & (window(64) | first(4))", "causal & (window(64) | first(4))"
    assert reaches([cache(n, mask) for n, mask in enumerate(masks)]) == [(4, 64)]
    assert pools_of([], 16) == (Pool((), Reach()),)


def test_a_pool_must_be_worth_it() -> None:
    """It saves a sixteenth of what a text of the longest context takes."""
    assert reaches([cache(0), cache(1, "causal & window(4096)")]) == [(0, None)]
    assert reaches([cache(0), cache(1, "causal & window(4000)")]) == [(0, None)]
    assert reaches([cache(0), cache(1, "causal & window(3000)")]) == [(0, None), (0, 3000)]
    assert reaches([cache(0, dim=512), cache(1, "causal & window(8)")]) == [(0, None)]
    both = [cache(0, "causal & window(500)"), cache(1, "causal & (window(512) | first(4))")]
    assert reaches(both) == [(4, 512)]
    assert reaches([*both, cache(2)]) == [(0, None), (4, 512)]
    assert reaches([cache(0), cache(1, "causal & window(3000)")], None) == [(0, None), (0, 3000)]


def test_what_costs_the_least_is_put_together() -> None:
    masks = ["causal & chunk(1024)", "causal & window(256)", "causal & window(64)", "causal"]
    assert reaches([cache(n, mask) for n, mask in enumerate(masks)]) == [
        (0, None), (0, 1024), (0, 256)
    ]  # fmt: skip


def test_chosen_keys_and_those_they_are_chosen_by_are_kept() -> None:
    mask = Mask.parse("causal & window(64)")
    index = IndexState("index0", 1, 8, torch.float32, mask)
    states = [index, cache(1, str(mask), chosen=4), cache(2, str(mask))]
    assert pools_of(states, 16, CONTEXT) == (
        Pool(("index0", "kv1"), Reach()),
        Pool(("kv2",), Reach(0, 64)),
    )


def test_states_of_a_sequence_are_in_the_first_pool_and_keep_its_first_block() -> None:
    conv = ConvState("conv0", 3, 8, torch.float32)
    wide, narrow = cache(1, "causal & window(640)"), cache(2, "causal & (window(64) | first(2))")
    assert pools_of([conv, narrow, wide], 16, CONTEXT) == (
        Pool(("conv0", "kv1"), Reach(16, 640)),
        Pool(("kv2",), Reach(2, 64)),
    )
    scan = RecurrentState("scan0", 9)
    assert pools_of([scan, narrow], 16, CONTEXT) == (Pool(("kv2",), Reach(16, 64)),)
    assert pools_of([scan, conv], 16, CONTEXT) == (Pool(("conv0",), Reach()),)


MASKS = st.sampled_from(["causal", "causal & chunk(48)"]) | st.builds(
    lambda window, first: str(Mask(window=window, first=first)),
    st.integers(1, 5000),
    st.integers(0, 40),
)


@given(st.lists(st.tuples(MASKS, st.integers(1, 300)), min_size=1, max_size=9))
def test_every_cache_is_in_a_pool_that_reaches_as_far_as_it_does(
    found: list[tuple[str, int]],
) -> None:
    states = [cache(number, mask, dim) for number, (mask, dim) in enumerate(found)]
    pools = pools_of(states, 16, CONTEXT)
    assert 1 <= len(pools) <= rows.MOST_POOLS
    assert sorted(name for pool in pools for name in pool.states) == [s.name for s in states]
    held = [pool.reach.held(1 << 62) for pool in pools]
    assert held == sorted(held, reverse=True)
    for layout in (KvLayout.of(states, CONTEXT), GpuLayout.of(states, "float16", CONTEXT)):
        taken: dict[int, list[tuple[int, int]]] = {}
        for state in layout.states:
            assert isinstance(state, KVState)
            number = layout.pool_of(state.inputs[0])
            reach, tail = layout.pools[number].reach, state.mask.tail
            assert reach.span is None or (
                tail is not None and reach.span >= tail and reach.first >= state.mask.first
            )
            size = 16 * state.heads * state.head_dim * state.dtype.itemsize
            for name in state.inputs:
                assert layout.pool_of(name) == number and layout.offsets[name] % 64 == 0
                taken.setdefault(number, []).append(
                    (layout.offsets[name], layout.offsets[name] + size)
                )
        for number, parts in taken.items():
            parts.sort()
            ends = [end for _, end in parts]
            assert all(end <= start for end, (start, _) in zip(ends, parts[1:], strict=False))
            assert ends[-1] <= layout.block_bytes[number]


def test_the_runtime_counts_as_compiled_code_does() -> None:
    assert plan.POOL_UNIT == rows.POOL_UNIT
