"""Where the threads of a small step meet: as seldom as may be, and never too seldom."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphwright.backends.tvm.kernels.kernel import Kernel
from graphwright.backends.tvm.meetings import Meetings, plan_meetings, verify_meetings
from graphwright.backends.tvm.phases import Operand, Phase
from graphwright.ir.errors import BackendError
from graphwright.ir.memory import Buffer, MemoryPlan

# a, b and c lie apart; d takes the place of a
PLACES = {"a": 0, "b": 64, "c": 128, "d": 0}
PLAN = MemoryPlan(
    "decode", 8, 8, 192, tuple(Buffer(name, at, 64, 0, 9) for name, at in PLACES.items())
)


def place(name: str, written: bool = False) -> Operand:
    return Operand("arena", PLACES[name], buffer=name, written=written)


def phase(step: str, reads: str, writes: str, replicated: bool = False) -> Phase:
    operands = [*(place(name) for name in reads), *(place(name, True) for name in writes)]
    kernel = Kernel(step, None)  # type: ignore[arg-type]  # never built
    return Phase(step, kernel, tuple(operands), "T", replicated)


def test_a_value_of_many_threads_is_met_for() -> None:
    phases = [phase("one", "", "a"), phase("two", "a", "b"), phase("three", "b", "c")]
    found = plan_meetings(phases, PLAN)
    assert found == Meetings(frozenset(), (True, True, False))
    verify_meetings(phases, PLAN, found)


def test_nobody_waits_for_what_each_thread_has() -> None:
    phases = [phase("one", "", "a", True), phase("two", "a", "b"), phase("three", "a", "c")]
    found = plan_meetings(phases, PLAN)
    assert found == Meetings(frozenset("a"), (False, False, False))
    verify_meetings(phases, PLAN, found)


def test_a_place_is_not_taken_while_others_read_it() -> None:
    """d lies where a was: whoever writes it must know that all have read a."""
    phases = [phase("one", "", "a"), phase("two", "a", "b"), phase("three", "", "d")]
    assert plan_meetings(phases, PLAN).after == (True, True, False)


def test_caches_and_logits_count() -> None:
    keys, values = Operand("kv", 0, written=True), Operand("kv", 4096, written=True)
    append = replace(phase("append", "", ""), operands=(keys,))
    other = replace(phase("other", "", ""), operands=(values,))
    attend = replace(phase("attend", "", "a"), operands=(keys.read(), place("a", True)))
    assert plan_meetings([append, other, attend], PLAN).after == (False, True, False)


def test_mistakes_are_found() -> None:
    phases = [phase("one", "", "a"), phase("two", "a", "b")]
    with pytest.raises(BackendError, match=r"'one' .* and 'two' .* without a meeting between"):
        verify_meetings(phases, PLAN, Meetings(frozenset(), (False, False)))
    with pytest.raises(BackendError, match=r"'one' .* by threads together but writes 'a'"):
        verify_meetings(phases, PLAN, Meetings(frozenset("a"), (True, False)))
    alone = replace(phase("one", "", ""), operands=(Operand("logits", written=True),))
    with pytest.raises(BackendError, match=r"by every thread but writes 'logits'"):
        verify_meetings([replace(alone, replicated=True)], PLAN, Meetings(frozenset(), (False,)))


names = st.sampled_from("abcd")
random_phases = st.lists(
    st.tuples(st.sets(names, max_size=2), st.sets(names, min_size=1, max_size=1), st.booleans()),
    min_size=1, max_size=8,
)  # fmt: skip


@settings(deadline=None)
@given(random_phases)
def test_what_is_planned_is_verified_and_each_meeting_is_needed(
    drawn: list[tuple[set[str], set[str], bool]],
) -> None:
    replicated: dict[str, bool] = {}
    phases = []
    for number, (reads, (written,), wish) in enumerate(drawn):
        kind = replicated.setdefault(written, wish)  # a buffer is written by one kind of phase
        phases.append(phase(f"p{number}", "".join(reads - {written}), written, kind))
    found = plan_meetings(phases, PLAN)
    verify_meetings(phases, PLAN, found)
    for number, meet in enumerate(found.after):
        if meet:
            fewer = tuple(m and i != number for i, m in enumerate(found.after))
            with pytest.raises(BackendError, match="without a meeting between"):
                verify_meetings(phases, PLAN, replace(found, after=fewer))
