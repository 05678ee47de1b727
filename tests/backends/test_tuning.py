"""Autotuning with a clock and runs of our own: what is chosen, what is kept, what it costs."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphwright.backends.tuning import Choice, Picks, Records, Run, Tuned, compare, tune

MACHINE = "a machine"


class Bench:
    """Runs that take what `speed` says, on a clock that only they move; a Rig too."""

    machine = MACHINE

    def __init__(self, speed: Callable[[str], float], prepare_seconds: float = 0.0) -> None:
        self._speed, self._prepare_seconds = speed, prepare_seconds
        self.now, self.prepared = 0.0, list[str]()

    def clock(self) -> float:
        return self.now

    def runs(self, *names: str) -> dict[str, Run]:
        return {name: self._run(name) for name in names}

    def _run(self, name: str) -> Run:
        def run() -> float:
            seconds = self._speed(name)
            self.now += seconds
            return seconds

        return run

    @contextmanager
    def prepare(self, choice: Choice) -> Iterator[Mapping[str, Run]]:
        self.prepared.append(choice.key)
        self.now += self._prepare_seconds
        yield self.runs(*choice.candidates)

    def tune(self, asked: Mapping[Choice, int], budget: float, records: Records | None = None,
             progress: Callable[[float, str], None] = lambda share, text: None,
             ) -> list[Tuned]:  # fmt: skip
        return tune(asked, self, budget, records=records, progress=progress, clock=self.clock)


def choice(n: int, *candidates: str, work: float = 1.0) -> Choice:
    return Choice.of("kernel", candidates or ("default", "other"), work=work, n=n)


def test_the_fastest_is_chosen_with_its_gain() -> None:
    bench = Bench(lambda name: {"default": 10e-3, "fast": 5e-3, "slow": 40e-3}[name])
    found = compare(bench.runs("default", "slow", "fast"), "default", 1.0, clock=bench.clock)
    assert (found.chosen, found.seconds["fast"]) == ("fast", 5e-3)
    assert found.gain == pytest.approx(2.0)
    assert 0.9 <= bench.now <= 1.1


@pytest.mark.parametrize(("candidate", "chosen"), [(9.8e-3, "default"), (9.6e-3, "other")])
def test_a_candidate_needs_a_margin(candidate: float, chosen: str) -> None:
    bench = Bench(lambda name: 10e-3 if name == "default" else candidate)
    found = compare(bench.runs("default", "other"), "default", 1.0, clock=bench.clock)
    assert found.chosen == chosen


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), count=st.integers(2, 8))
def test_noise_chooses_nothing(seed: int, count: int) -> None:
    """Equal candidates, each repetition up to three times as slow as it should be, in stretches."""
    draw, bench = random.Random(seed), Bench(lambda name: 0.0)
    names = ["default", *(f"c{i}" for i in range(count))]

    def speed(name: str) -> float:
        stretch = random.Random(f"{seed} {int(bench.now * 5)}").uniform(1, 2)
        return 5e-3 * stretch * draw.uniform(1, 1.5)

    bench = Bench(speed)
    found = compare(bench.runs(*names), "default", 3.0, clock=bench.clock)
    assert found.chosen == "default" or found.gain < 1.1  # a lucky one wins little


def test_one_lucky_repetition_does_not_win() -> None:
    """The minimum alone would take the candidate; the median of neighbours does not."""
    calls = iter(range(10**6))

    def speed(name: str) -> float:
        return 8e-3 if name == "other" and next(calls) % 20 == 3 else 10e-3

    bench = Bench(speed)
    assert compare(bench.runs("default", "other"), "default", 2.0, clock=bench.clock).chosen == (
        "default"
    )


def test_a_default_without_rivals_is_not_measured() -> None:
    bench = Bench(lambda name: 1.0)
    assert compare(bench.runs("default"), "default", 5.0, clock=bench.clock).gain == 1.0
    assert bench.now == 0


def test_hopeless_candidates_cost_few_repetitions() -> None:
    counted: dict[str, int] = {}

    def speed(name: str) -> float:
        counted[name] = counted.get(name, 0) + 1
        return 1e-3 if name == "default" else 5e-3

    bench = Bench(speed)
    compare(bench.runs("default", "slow"), "default", 1.0, clock=bench.clock)
    assert counted["slow"] <= 5 < counted["default"] + 5


def test_weighty_choices_come_first_and_the_budget_is_kept() -> None:
    asked = {choice(n, work=n): 1 for n in (1, 3, 2, 4)} | {choice(9, "only"): 50}
    bench = Bench(lambda name: 10e-3, prepare_seconds=0.8)
    found = bench.tune(asked, budget=2.0)
    assert bench.prepared == ["kernel n=4", "kernel n=3", "kernel n=2"]
    assert [each.source for each in found] == ["measured"] * 3 + ["skipped"]
    assert bench.now < 2.0 + 0.8 + 0.2
    assert found[-1].finding.chosen == "default"


def test_progress_grows_to_the_end() -> None:
    seen: list[float] = []
    bench = Bench(lambda name: 10e-3)
    asked = {choice(n): 1 for n in range(3)}
    bench.tune(asked, 5.0, progress=lambda share, text: seen.append(share))
    assert seen == sorted(seen) and seen[-1] == 1.0 and len(seen) == 4


def test_records_are_read_again(tmp_path: Path) -> None:
    asked = {choice(1): 2, choice(2): 1}
    bench = Bench(lambda name: 10e-3 if name == "default" else 5e-3)
    first = bench.tune(asked, 5.0, Records(tmp_path, MACHINE))
    again = bench.tune(asked, 5.0, Records(tmp_path, MACHINE))
    assert [each.source for each in again] == ["recorded"] * 2
    assert [each.finding for each in again] == [each.finding for each in first]
    assert len(bench.prepared) == 2


def test_records_hold_for_the_same_machine_and_candidates_only(tmp_path: Path) -> None:
    bench = Bench(lambda name: 10e-3)
    bench.tune({choice(1): 1}, 5.0, Records(tmp_path, MACHINE))
    assert Records(tmp_path, MACHINE).find(choice(1)) is not None
    assert Records(tmp_path, "another").find(choice(1)) is None
    assert Records(tmp_path, MACHINE).find(choice(1, "default", "new")) is None


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": 1}', '{"format": 99}'])
def test_a_broken_file_of_records_is_none(tmp_path: Path, content: str) -> None:
    records, bench = Records(tmp_path, MACHINE), Bench(lambda name: 10e-3)
    bench.tune({choice(1): 1}, 5.0, records)
    (path,) = tmp_path.iterdir()
    path.write_text(content)
    assert records.find(choice(1)) is None
    bench.tune({choice(1): 1}, 5.0, records)
    assert records.find(choice(1)) is not None


def test_a_record_that_names_no_candidate_is_none(tmp_path: Path) -> None:
    records, bench = Records(tmp_path, MACHINE), Bench(lambda name: 10e-3)
    bench.tune({choice(1): 1}, 5.0, records)
    (path,) = tmp_path.iterdir()
    content = json.loads(path.read_text())
    for record in content["records"].values():
        record["chosen"] = "gone"
    path.write_text(json.dumps(content))
    assert records.find(choice(1)) is None


def test_where_nothing_can_be_kept_tuning_works(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    bench = Bench(lambda name: 10e-3 if name == "default" else 5e-3)
    (found,) = bench.tune({choice(1): 1}, 5.0, Records(tmp_path / "file", MACHINE))
    assert found.finding.chosen == "other"


def test_picks_give_what_was_found_and_count_what_is_asked() -> None:
    picks = Picks({choice(1).key: "other", choice(2).key: "gone"})
    assert [picks.pick(choice(n)) for n in (1, 1, 2, 3)] == ["other", "other", "default", "default"]
    assert picks.asked == {choice(1): 2, choice(2): 1, choice(3): 1}
