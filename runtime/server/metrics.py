"""What /metrics tells, in Prometheus' text format. Counted on the event loop alone."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator

__all__ = ["Histogram", "Metrics"]

_STEP_BOUNDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_FIRST_TOKEN_BOUNDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Histogram:
    """Observations by upper bound, in seconds."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, seconds: float) -> None:
        """Adds one observation."""
        self._counts[bisect_left(self._bounds, seconds)] += 1
        self._sum += seconds

    def lines(self, name: str) -> Iterator[str]:
        """Cumulative buckets, sum and count."""
        total = 0
        for bound, count in zip((*self._bounds, "+Inf"), self._counts, strict=True):
            total += count
            yield f'{name}_bucket{{le="{bound}"}} {total}'
        yield f"{name}_sum {self._sum:.9g}"
        yield f"{name}_count {total}"


class Metrics:
    """Counters and histograms of a server since it began."""

    def __init__(self) -> None:
        self.prompt_tokens = 0
        self.generated_tokens = 0
        self.reused_tokens = 0
        self.drafts = self.drafted_tokens = self.accepted_tokens = 0
        self.draft_seconds = 0.0
        self.step_seconds = Histogram(_STEP_BOUNDS)
        self.first_token_seconds = Histogram(_FIRST_TOKEN_BOUNDS)
        self._answers: Counter[tuple[str, int]] = Counter()
        self._ended: Counter[str] = Counter()

    def answered(self, endpoint: str, status: int) -> None:
        """Counts an HTTP request when its answer begins."""
        self._answers[endpoint, status] += 1

    def count(self, ended: Iterable[str], tokens: int) -> None:
        """Counts sequences that left the engine, by reason, and tokens that it made."""
        self._ended.update(ended)
        self.generated_tokens += tokens

    def count_guesses(
        self, drafts: int, drafted_tokens: int, accepted_tokens: int, seconds: float
    ) -> None:
        """Says how many there were so far of what speculation guessed, and how long that took."""
        self.drafts, self.drafted_tokens = drafts, drafted_tokens
        self.accepted_tokens, self.draft_seconds = accepted_tokens, seconds

    def text(self, *, running: int, waiting: int, failed: bool) -> str:
        """The page; running, waiting: sequences at this moment."""
        return "\n".join(self._lines(running, waiting, failed)) + "\n"

    def _lines(self, running: int, waiting: int, failed: bool) -> Iterator[str]:
        yield from _head("requests_total", "counter", "HTTP requests by endpoint and status.")
        for (endpoint, status), count in sorted(self._answers.items()):
            labels = f'endpoint="{endpoint}",status="{status}"'
            yield f"graphwright_requests_total{{{labels}}} {count}"
        yield from _head("sequences_ended_total", "counter", "Sequences that ended, by reason.")
        for reason, count in sorted(self._ended.items()):
            yield f'graphwright_sequences_ended_total{{reason="{reason}"}} {count}'
        for name, kind, text, value in (
            ("prompt_tokens_total", "counter", "Prompt tokens of accepted sequences.",
             self.prompt_tokens),
            ("generated_tokens_total", "counter", "Tokens generated.", self.generated_tokens),
            ("reused_tokens_total", "counter", "Prompt tokens of ended sequences not computed.",
             self.reused_tokens),
            ("spec_decode_num_drafts_total", "counter", "Guesses that were computed.", self.drafts),
            ("spec_decode_num_draft_tokens_total", "counter", "Tokens of these guesses.",
             self.drafted_tokens),
            ("spec_decode_num_accepted_tokens_total", "counter", "Those that were right.",
             self.accepted_tokens),
            ("spec_decode_draft_seconds_total", "counter", "Time that guessing took, of all steps.",
             round(self.draft_seconds, 6)),
            ("sequences_running", "gauge", "Sequences in the batch.", running),
            ("sequences_waiting", "gauge", "Sequences that wait for a place in it.", waiting),
            ("engine_failed", "gauge", "1 when the engine stopped working.", int(failed)),
        ):  # fmt: skip
            yield from _head(name, kind, text)
            yield f"graphwright_{name} {value}"
        yield from _head("step_seconds", "histogram", "Time of one step over the batch.")
        yield from self.step_seconds.lines("graphwright_step_seconds")
        yield from _head("first_token_seconds", "histogram", "From a request to its first token.")
        yield from self.first_token_seconds.lines("graphwright_first_token_seconds")


def _head(name: str, kind: str, text: str) -> Iterator[str]:
    yield f"# HELP graphwright_{name} {text}"
    yield f"# TYPE graphwright_{name} {kind}"
