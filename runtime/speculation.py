"""Speculative decoding: guessed tokens are computed beside the newest one, and those that the model
chooses indeed are taken, several in one step. Here they are looked up in the text itself;
draft_speculator.py lets a smaller model guess.

A step of a few tokens reads the weights once, as a step of one does, so on CPUs it takes little
longer. Choosing stays what it is, token by token with the request's own random numbers, so that
nothing changes but the number of steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from graphwright.runtime.draft_model import DraftModel
from graphwright.runtime.draft_speculator import DraftSpeculator
from graphwright.runtime.draws import LARGEST, Draw
from graphwright.runtime.library import StepLibrary
from graphwright.runtime.lookup import Lookup
from graphwright.runtime.plan import EntryPlan, Plan
from graphwright.runtime.request import Request
from graphwright.runtime.speculation_options import SpeculationOptions
from graphwright.runtime.step_cost import StepCost
from graphwright.runtime.steps import Chunk, Step
from graphwright.runtime.steps import Sequence as TokenSequence

__all__ = ["Drafter", "LookupSpeculator", "Speculator", "draws_of_rows", "make_speculator",
           "rows_that_count", "share"]  # fmt: skip

# By the length of a match, longer ones as the last: the share of tokens behind it that are right,
# until it is known better.
_START = (0.0, 0.0, 0.2, 0.35, 0.5, 0.8)
_MEMORY = 16  # tokens by which that share is judged, the newer ones more


class Speculator(Protocol):
    """Who guesses. It is asked before each step, and told of each sequence that ends."""

    def extend(self, step: Step, requests: Sequence[Request]) -> bool:
        """Adds drafts to a step's chunks that decode, as far as its entry and the requests have
        room and they are worth it. Were any added?

        requests: one for each chunk that chooses a token.
        """

    def forget(self, sequence: TokenSequence) -> None:
        """The sequence has ended."""


def make_speculator(
    asked: str | None, plan: Plan, library: StepLibrary, open_draft: Callable[[str], DraftModel]
) -> Speculator | None:
    """What `Engine(speculate=…)` asks for; None where it asks for none. Raises ArtifactError for a
    draft that cannot be opened, RequestError for what cannot be."""
    if asked is None:
        return None
    options = SpeculationOptions.parse(asked, plan, overlaps=library.overlaps)
    decode, cost = plan.entries["decode"], StepCost.of(plan)
    if options.draft is not None:
        return DraftSpeculator(decode, options.most, cost, open_draft(options.draft))
    return LookupSpeculator(decode, options.most, cost)


class LookupSpeculator:
    """Puts guessed tokens into the steps of the entry `decode`, at most `most` of a sequence, as
    far as they are worth their `cost`."""

    def __init__(self, decode: EntryPlan, most: int, cost: StepCost) -> None:
        self._decode, self._most, self._cost = decode, most, cost
        self._drafters: dict[TokenSequence, Drafter] = {}

    def extend(self, step: Step, requests: Sequence[Request]) -> bool:
        """Adds drafts to a step's chunks that decode, as far as its entry and the requests have
        room and they are worth it. Were any added?

        requests: one for each chunk that chooses a token.
        """
        if step.entry != "decode":
            return False
        guessed: list[tuple[Chunk, Drafter]] = []
        hopes: list[tuple[float, int]] = []
        tokens = rows = number = positions = 0
        for chunk in step.chunks:
            tokens += chunk.count
            rows += chunk.rows
            positions += chunk.start
            if not chunk.chooses:
                continue
            left = requests[number].left
            number += 1
            if left > 1 and not chunk.is_prefill:
                drafter = self._drafter(chunk.sequence)
                hope = drafter.look()
                if hope > self._cost.share:  # a lower one is hardly ever worth a token
                    guessed.append((chunk, drafter))
                    hopes.append((hope, min(self._most, left - 1)))
        if not hopes:
            return False
        spare = min(self._decode.max_tokens - tokens, self._decode.max_rows - rows)
        mean = sum(chunk.start for chunk, _ in guessed) / len(guessed)
        cost, each = self._cost.step(tokens, positions), self._cost.token(mean)
        lengths = share(hopes, spare, number, cost, each)
        for (chunk, drafter), length in zip(guessed, lengths, strict=True):
            if length:
                chunk.add_draft(drafter.draft(length))
        return any(lengths)

    def forget(self, sequence: TokenSequence) -> None:
        """The sequence has ended."""
        self._drafters.pop(sequence, None)

    def _drafter(self, sequence: TokenSequence) -> Drafter:
        found = self._drafters.get(sequence)
        if found is None:
            found = self._drafters[sequence] = Drafter(sequence.tokens)
        return found


def rows_that_count(step: Step, requests: Sequence[Request]) -> Iterator[tuple[int, Request]]:
    """(sampled row, its request) of every row of a step whose token is to be taken: of each chunk
    that chooses one, and of drafts.

    Ask for the next pair when the token of the one in front was taken: a row counts only if all
    tokens before it are those that were guessed. So far the sequence's cache is right, and
    `computed` follows; what was computed behind that is overwritten by later steps.
    """
    asking, first = iter(requests), 0
    for chunk in step.chunks:
        if chunk.chooses:
            yield from _rows_of(chunk, first + chunk.scored, next(asking))
        first += chunk.rows


def _rows_of(chunk: Chunk, first: int, request: Request) -> Iterator[tuple[int, Request]]:
    yield first, request
    for row, guessed in enumerate(chunk.draft, first + 1):
        if request.finished or chunk.sequence.tokens[-1] != guessed:
            break
        chunk.sequence.computed += 1
        chunk.accepted += 1
        yield row, request


def draws_of_rows(step: Step, draws: Sequence[Draw | None]) -> list[Draw | None]:
    """What a step is told of each row, from what it is told of each request's own: nothing of rows
    that choose no token.

    A random number belongs to a token that is said, and which rows say any is not known before: the
    rows of guessed tokens are drawn from by the host.
    """
    asking = iter(draws)
    found: list[Draw | None] = []
    for chunk in step.chunks:
        found += [None] * chunk.scored
        if chunk.chooses:
            draw = next(asking)
            found += [draw, *[draw if draw is LARGEST else None] * len(chunk.draft)]
    return found


class Drafter:
    """Guesses what follows a sequence's `tokens`, and sees how often that was right.

    Guesses behind longer matches are better, so each length of a match has a share of its own. The
    first token of a guess is compared with what came even where it was not computed: a text that
    begins to repeat itself is noticed without trying.
    """

    def __init__(self, tokens: list[int]) -> None:
        self._tokens = tokens
        self._lookup = Lookup(tokens)
        self._shares = list(_START)
        self._length = 0  # of the match, as an index of those
        self._guess: list[int] = []
        self._start = 0  # the index of the guess's first token

    def look(self) -> float:
        """Finds where the end of the text stood before. How likely a token that is guessed by that
        is right, by what came of such guesses; 0 when there is nothing to guess."""
        if self._guess:
            self._learn()
        lookup = self._lookup
        lookup.follow()
        self._length = min(lookup.length, len(_START) - 1)
        if not self._length:
            self._guess = []
            return 0.0
        self._guess, self._start = lookup.guess(1), len(self._tokens)
        return self._shares[self._length]

    def draft(self, length: int) -> list[int]:
        """The next `length` tokens as they are guessed."""
        self._guess = self._lookup.guess(length)
        return self._guess

    def _learn(self) -> None:
        """Compares the last guess with what came instead, up to the first difference."""
        share = self._shares[self._length]
        for guessed, token in zip(self._guess, self._tokens[self._start :], strict=False):
            share += ((guessed == token) - share) / _MEMORY
            if guessed != token:
                break
        self._shares[self._length] = share


def share(
    hopes: Sequence[tuple[float, int]], spare: int, said: int, cost: float, each: float
) -> list[int]:
    """How many tokens of each draft a step should compute, `spare` at most in all.

    hopes: of each draft the probability that its next token is right if those before are, and its
    most tokens. The step says `said` tokens without drafts and costs `cost`, with every token
    `each` more. The likeliest token is added next, as long as what it may say for what it costs is
    more than what the step does.
    """
    lengths = [0] * len(hopes)
    gains = [hope if room else 0.0 for hope, room in hopes]
    expected = float(said)
    for _ in range(spare if gains else 0):
        best = max(gains)
        if best * cost <= each * expected:
            break
        number = gains.index(best)
        hope, room = hopes[number]
        lengths[number] += 1
        expected, cost = expected + best, cost + each
        gains[number] = best * hope if lengths[number] < room else 0.0
    return lengths
