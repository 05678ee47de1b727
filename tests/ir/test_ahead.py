"""Results come in order, some of them early, never too many, and errors where they are due."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from graphwright.ir.ahead import ahead


def test_results_come_in_order_and_only_a_few_wait() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for i in range(20):
            assert i <= len(taken) + 3, "more than the threads' number of results wait"
            yield i

    for result in ahead(lambda i: i * i, items(), threads=3):
        taken.append(result)
    assert taken == [i * i for i in range(20)]


def test_items_are_computed_side_by_side() -> None:
    meeting = threading.Barrier(2, timeout=30)  # broken, and an error, if they come one by one

    def meet(item: int) -> int:
        meeting.wait()
        return item

    assert list(ahead(meet, range(4), threads=2)) == [0, 1, 2, 3]


def test_an_error_is_raised_where_its_result_is_due() -> None:
    results = ahead(lambda i: 1 // (2 - i), range(5), threads=4)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_a_reader_may_stop_early() -> None:
    results = ahead(str, range(100), threads=2)
    assert next(results) == "0"
    results.close()  # type: ignore[attr-defined]
    assert not [t for t in threading.enumerate() if t.name.startswith("ahead")]
