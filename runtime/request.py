"""One prompt on its way: it takes logits, chooses tokens, and knows when it is done."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from graphwright.runtime.draws import LARGEST, Draw
from graphwright.runtime.errors import RequestError
from graphwright.runtime.library import StepLibrary
from graphwright.runtime.log_probabilities import TokenLogprobs, token_logprobs
from graphwright.runtime.logit_changes import LogitChanges
from graphwright.runtime.prompt_scores import PromptScores
from graphwright.runtime.sampler import Sampler
from graphwright.runtime.sampling_params import Sampling
from graphwright.runtime.steps import Sequence
from graphwright.runtime.stopping import Decoder, Detokenizer, StopTexts

__all__ = ["FinishReason", "Output", "Piece", "Request"]

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Piece:
    """What one step added: new ids, the text that became certain, and the reason if it ended.

    logprobs: one for each id, when they were asked for. prompt_logprobs: in the first piece, one
    for each token of the prompt, when they were asked for.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None = None
    logprobs: tuple[TokenLogprobs, ...] | None = None
    prompt_logprobs: tuple[TokenLogprobs, ...] | None = None


@dataclass(frozen=True)
class Output:
    """A finished completion. token_ids: the generated ones, an end-of-text token included.

    finish_reason: "stop" (end-of-text token, stop text or the grammar's end) or "length"
    (max_tokens or the context).
    logits: float32 [len(token_ids), V], of what was sampled from, when they were asked for.
    logprobs: one for each of token_ids, when SamplingParams.logprobs asked for them.
    prompt_logprobs: one for each token of the prompt, when SamplingParams.prompt_logprobs asked for
    them; that of the first is NaN.
    """

    text: str
    token_ids: list[int]
    prompt_tokens: int
    finish_reason: FinishReason
    logits: NDArray[np.float32] | None = None
    logprobs: list[TokenLogprobs] | None = None
    prompt_logprobs: list[TokenLogprobs] | None = None


class Request:
    """A prompt with its sampler and what it said so far. races: see Sampler. adapter: a number."""

    def __init__(
        self,
        prompt: list[int],
        sampling: Sampling,
        *,
        vocab_size: int,
        context: int,
        eos_ids: frozenset[int],
        decoder: Decoder | None,
        keep_logits: bool = False,
        changes: LogitChanges | None = None,
        races: bool = False,
        adapter: int | None = None,
    ) -> None:
        most = sampling.prompt_logprobs
        self._scores = None if most is None else PromptScores(prompt, most, decoder)
        self.sequence = Sequence(prompt, every_row=self._scores is not None, adapter=adapter)
        self.first_token: float | None = None
        self.finish_reason: FinishReason | None = None
        self.error: RequestError | None = None
        self._sampling = sampling
        self._limit = min(sampling.max_tokens, context - len(prompt))
        self._eos_ids = sampling.ends(eos_ids)
        self._sampler = Sampler(sampling, vocab_size, prompt, changes, races)
        self._changes = changes
        self._detokenizer = Detokenizer(decoder, prompt) if decoder is not None else None
        self._stop = StopTexts(sampling.stop)
        self._logits: list[NDArray[np.float32]] | None = [] if keep_logits else None
        self._logprobs: list[TokenLogprobs] = []
        self._characters = 0  # of text that is certain
        self._pieces: deque[Piece] = deque()
        self._texts: list[str] = []

    @property
    def finished(self) -> bool:
        """Has it ended, by its own end or by an error?"""
        return self.finish_reason is not None or self.error is not None

    @property
    def generated(self) -> list[int]:
        """The token ids chosen so far."""
        return self.sequence.tokens[self.sequence.prompt_length :]

    def draw(self, library: StepLibrary) -> Draw | None:
        """How a step of the library is to choose the next token; None: by its logits, here. Once
        for each token: it takes a random number if one is needed.
        """
        if self._sampler.takes_largest:
            return LARGEST if library.takes_largest else None
        return self._sampler.draw() if library.draws else None

    def ahead(self) -> Sampler | None:
        """What would choose the next tokens as the request will; None: always the largest logit."""
        return None if self._sampler.takes_largest else self._sampler.ahead()

    @property
    def draws(self) -> bool:
        """Are its tokens drawn?"""
        return self._sampling.temperature > 0 and self._sampling.top_k != 1

    def ends_with(self, token: int) -> bool:
        """Is it an end-of-text token for this request?"""
        return token in self._eos_ids

    @property
    def left(self) -> int:
        """How many tokens it may still be given."""
        return self._limit - len(self.sequence.tokens) + self.sequence.prompt_length

    @property
    def ends_next(self) -> bool:
        """Is the next token its last one, whichever it is?"""
        return self.left <= 1

    @property
    def keeps_logits(self) -> bool:
        """Does its output need all logits?"""
        return self._logits is not None or self._sampling.logprobs is not None

    def score(self, start: int, rows: NDArray[np.float32]) -> None:
        """Takes logits float32 [n, V] of the prompt's positions from `start` on that stand before
        tokens of the prompt. Raises RequestError.
        """
        assert self._scores is not None
        self._scores.add(start, rows)

    def accept(self, logits: NDArray[np.float32], chosen: int | None = None) -> None:
        """Chooses the next token from logits float32 [V] and says what follows from it.

        chosen: what a step has chosen, as `draw` said. Raises RequestError.
        """
        if self._limit == 0:  # the prompt was all that was asked for
            self.finish_reason = "length"
            self._say("", ())
            return
        token = self._sampler.choose(logits, chosen)
        if self.first_token is None:
            self.first_token = time.perf_counter()
        if self._logits is not None:
            self._logits.append(logits.copy())
        self.sequence.tokens.append(token)
        logprobs = self._take_logprobs(logits, token)
        ended = token in self._eos_ids  # and then the token is no text, whatever it is called
        text = self._detokenizer.push(token) if self._detokenizer and not ended else ""
        self._characters += len(text)
        text, stopped = (text, False) if self._must_go_on else self._stop.push(text)
        complete = self._changes is not None and self._changes.complete
        if stopped or complete or ended:
            self.finish_reason = "stop"
        elif len(self.sequence.tokens) - self.sequence.prompt_length >= self._limit:
            self.finish_reason = "length"
        if self.finish_reason is not None and not stopped:
            text += self._rest()
        self._say(text, (token,), logprobs)

    @property
    def _must_go_on(self) -> bool:
        """Were fewer tokens generated than there must be before a stop text counts?"""
        generated = len(self.sequence.tokens) - self.sequence.prompt_length
        return generated < self._sampling.min_tokens

    def _say(
        self, text: str, tokens: tuple[int, ...], logprobs: tuple[TokenLogprobs, ...] | None = None
    ) -> None:
        scores = self._scores if not self._texts else None
        found = None if scores is None else tuple(scores.found)
        self._texts.append(text)
        self._pieces.append(Piece(text, tokens, self.finish_reason, logprobs, found))

    def _take_logprobs(
        self, logits: NDArray[np.float32], token: int
    ) -> tuple[TokenLogprobs, ...] | None:
        """Of a token that was chosen, before its text is known; None when nobody asked."""
        most = self._sampling.logprobs
        if most is None:
            return None
        found = token_logprobs(logits, token, most, self._characters)
        self._logprobs.append(found)
        return (found,)

    def _rest(self) -> str:
        """What was held back; it may complete a stop text after all."""
        text, stopped = self._stop.push(self._detokenizer.flush() if self._detokenizer else "")
        if stopped:
            self.finish_reason = "stop"
            return text
        return text + self._stop.flush()

    def take_pieces(self) -> Iterator[Piece]:
        """The pieces nobody has taken yet."""
        while self._pieces:
            yield self._pieces.popleft()

    def output(self) -> Output:
        """The result. The request must be finished."""
        assert self.finish_reason is not None
        logits = None if self._logits is None else np.stack(self._logits)
        return Output(
            "".join(self._texts),
            self.generated,
            self.sequence.prompt_length,
            self.finish_reason,
            logits,
            None if self._sampling.logprobs is None else self._logprobs,
            None if self._scores is None else self._scores.found,
        )
