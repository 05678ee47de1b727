"""Requests that come, go on and are cancelled in any order: each says what it says alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from echo_toy import PERIOD
from hypothesis import strategies as st
from toy_model import VOCAB

from graphwright.runtime.engine import Engine
from graphwright.runtime.request import Request
from graphwright.runtime.sampling_params import SamplingParams

__all__ = ["ECHO_PROMPTS", "GREEDY", "check_events", "drawn", "events"]

Alone: TypeAlias = Callable[[tuple[int, ...], SamplingParams], tuple[list[int], str, str]]

# for the echo toy: texts that repeat themselves, at once or late
ECHO_PROMPTS = st.builds(
    lambda length, first, step: [(first + step * (i % PERIOD)) % VOCAB for i in range(length)],
    st.sampled_from([1, 2, 4, 11, 25, 60]), st.integers(0, 5), st.integers(0, 3),
)  # fmt: skip
GREEDY = st.builds(
    lambda tokens, ignore, stop: SamplingParams(
        temperature=0, max_tokens=tokens, ignore_eos=ignore, stop=stop
    ),
    st.sampled_from([1, 2, 3, 9, 40]), st.booleans(), st.sampled_from([(), ("e",), ("Q", "7")]),
)  # fmt: skip


def drawn(most: int) -> Any:
    """Parameters of at most so many tokens that are drawn."""
    rules: list[dict[str, Any]] = [
        {}, {"top_k": 8}, {"top_p": 0.8, "min_p": 0.1}, {"top_k": 3, "repetition_penalty": 1.2},
    ]  # fmt: skip
    return st.builds(
        lambda tokens, rule: SamplingParams(temperature=2, max_tokens=tokens, seed=5, **rule),
        st.integers(1, most), st.sampled_from(rules),
    )  # fmt: skip


def events(prompts: Any, *params: Any) -> Any:
    """Lists of ("submit", prompt, params), ("step", times) and ("cancel", number)."""
    return st.lists(
        st.one_of(
            st.tuples(st.just("submit"), prompts, st.one_of(*params)),
            st.tuples(st.just("step"), st.integers(1, 4)),
            st.tuples(st.just("cancel"), st.integers(0, 9)),
        ),
        max_size=25,
    )


def check_events(engine: Engine, happened: list[Any], alone: Alone) -> None:
    """Lets it happen, then the rest run to its end. Each request says what `alone` says of it
    (token ids, text, reason), or the beginning where it was cancelled, and nothing is left.
    """
    requests: list[tuple[tuple[int, ...], SamplingParams, Request]] = []
    cancelled: set[int] = set()
    for what, *rest in happened:
        if what == "submit":
            prompt, params = rest
            requests.append((tuple(prompt), params, engine.submit(prompt, params)))
        elif what == "step":
            for _ in range(rest[0]):
                engine.step()
        elif rest[0] < len(requests):
            cancelled.add(rest[0])
            engine.cancel(requests[rest[0]][2])
    while not all(r.finished for n, (_, _, r) in enumerate(requests) if n not in cancelled):
        assert engine.step()
    for number, (prompt, params, request) in enumerate(requests):
        tokens, text, reason = alone(prompt, params)
        if number in cancelled and not request.finished:
            assert request.generated == tokens[: len(request.generated)]
            continue
        output = request.output()
        assert (output.token_ids, output.text, output.finish_reason) == (tokens, text, reason)
        assert len(prompt) + len(request.generated) <= engine.context
    assert not engine._stepper.requests and engine._pool.free == engine._pool.blocks
    assert engine.step() is False
