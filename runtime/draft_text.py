"""What a draft model guesses of one text, and what came of it."""

from __future__ import annotations

from bisect import bisect_right

import numpy as np
from numpy.typing import NDArray

from graphwright.runtime.draft_model import Follower
from graphwright.runtime.errors import RequestError
from graphwright.runtime.request import Request
from graphwright.runtime.sampler import Sampler

__all__ = ["REST", "Acceptance", "DraftText", "Experience", "Share"]

REST = 16
"""Tokens until it is asked again whether guesses of a text pay."""

_MEMORY, _LONG_MEMORY = 16, 64  # guesses by which those of a text, and of all texts, are judged
_PAUSE, _LONGEST_PAUSE = 16, 256  # tokens between guesses that only see whether they are better
# How sure the draft is, up to each bound; of each such kind, and last of what is surer, how many
# guesses are right until it is known better.
_BOUNDS = (0.2, 0.4, 0.6, 0.8, 0.9, 0.97)
_START = (0.15, 0.3, 0.5, 0.65, 0.8, 0.9, 0.97)
_START_MEAN = 0.6


class Share:
    """How many of some guesses are right: `value`, which is at first worth as much as a quarter of
    the `memory` newest guesses."""

    def __init__(self, value: float, memory: int) -> None:
        self.value, self._count, self._memory = value, memory // 4, memory

    def learn(self, right: bool) -> None:
        """A guess has been compared with what came."""
        self._count = min(self._count + 1, self._memory)
        self.value += (right - self.value) / self._count


class Acceptance:
    """The share of guesses that are right, by how sure the draft is of them, and of all: `mean`,
    which is what is known of one before it is made. known: what is expected at first.
    """

    def __init__(self, memory: int, known: Acceptance | None = None) -> None:
        self.mean: Share = Share(_START_MEAN if known is None else known.mean.value, memory)
        start = _START if known is None else [each.value for each in known._shares]
        self._shares: list[Share] = [Share(each, memory) for each in start]

    def share(self, sure: float) -> Share:
        """Of guesses of which the draft gives the likeliest token so much probability."""
        return self._shares[bisect_right(_BOUNDS, sure)]

    def learn(self, sure: float, right: bool) -> None:
        """A guess has been compared with what came."""
        for each in (self.mean, self.share(sure)):
            each.learn(right)


class Experience:
    """What has been learnt of all texts. pause: tokens between guesses of a text that does not pay,
    to begin with."""

    def __init__(self) -> None:
        self.acceptance, self.pause = Acceptance(_LONG_MEMORY), _PAUSE


class DraftText:
    """The text of a request. guesses: what the draft says follows, rights: how likely all of them
    up to each are right. room: for so many more. only_tries: one guess that is not expected to pay.
    rests_until: the text has so many tokens, as nothing is worth it before.
    """

    def __init__(self, request: Request, follower: Follower, known: Experience) -> None:
        self.follower, self.sequence = follower, request.sequence
        self.guesses: list[int] = []
        self.rights: list[float] = []
        self.room, self.only_tries, self.rests_until = 0, False, 0
        self._request, self._known = request, known
        self._acceptance = Acceptance(_MEMORY, known.acceptance)
        self._pause = known.pause
        self._tried = self._start = len(self.sequence.tokens)
        self._sures: list[float] = []
        self._is_trial = False
        self._sampler: Sampler | None = None

    @property
    def hope(self) -> float:
        """How likely the next guess is right, if those before it are."""
        return self._acceptance.mean.value

    @property
    def next_hope(self) -> float:
        """How likely it is right, and those before it, too."""
        return self.hope * (self.rights[-1] if self.rights else 1.0)

    def open(self, room: int, pays: bool) -> bool:
        """Begins a draft of up to `room` tokens. False: not now, as it does not pay, though it
        would if guesses were right, and another was tried not long ago."""
        tokens = self.sequence.tokens
        self.only_tries = self._is_trial = not pays
        if pays:
            self._pause = self._known.pause = _PAUSE
        elif len(tokens) < self._tried + self._pause:
            self.rests_until = self._tried + self._pause
            return False
        self._start, self.room = len(tokens), room if pays else 1
        return True

    def guess(self, logits: NDArray[np.float32]) -> float:
        """Guesses a token by the draft's logits float32 [V]. How likely it is said; 0 where there
        is nothing to guess: of an end of the text, as nothing is behind it to be saved."""
        if not self.guesses:
            self._sampler = self._request.ahead()
        self._tried, self.only_tries = self._start, False
        token, sure = self._choose(logits)
        if token is None or self._request.ends_with(token):
            self.room = 0
            return 0.0
        right = self._acceptance.share(sure).value * (self.rights[-1] if self.rights else 1.0)
        self.guesses.append(token)
        self.rights.append(right)
        self._sures.append(sure)
        self.follower.own.tokens.append(token)
        self.room -= 1
        return right

    def learn(self) -> None:
        """Compares the guesses with what came instead, up to the first difference, and forgets
        them. Also those that nobody checked."""
        came = self.sequence.tokens[self._start :]
        for guess, sure, token in zip(self.guesses, self._sures, came, strict=False):
            for each in (self._acceptance, self._known.acceptance):
                each.learn(sure, guess == token)
            if self._is_trial:
                longer = self._pause // 4 if guess == token else self._pause * 2
                self._pause = self._known.pause = min(max(1, longer), _LONGEST_PAUSE)
            if guess != token:
                break
        self.guesses, self.rights, self._sures = [], [], []

    def _choose(self, logits: NDArray[np.float32]) -> tuple[int | None, float]:
        """What the request would choose by these logits, and how sure the draft is; None where they
        are not numbers, or allow nothing."""
        top = logits.max()
        if not np.isfinite(top):
            return None, 0.0
        sure = 1 / float(np.exp(logits - top).sum())
        if self._sampler is None:
            return int(logits.argmax()), sure
        try:
            return self._sampler.choose(logits), sure
        except RequestError:
            return None, 0.0  # the model's own logits will say whether the request can go on
