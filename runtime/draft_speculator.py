"""Speculative decoding with a draft model: a smaller one guesses, token by token, what the model
that answers will choose, as long as that is worth what it costs.

The draft chooses as the request does, with the same penalties, grammar and random numbers, from its
own logits. How guesses are checked does not depend on who made them: see speculation.py.
"""

from __future__ import annotations

from collections.abc import Sequence

from graphwright.runtime.draft_model import DraftModel
from graphwright.runtime.draft_text import REST, DraftText, Experience
from graphwright.runtime.draft_worth import Costs, saving
from graphwright.runtime.plan import EntryPlan
from graphwright.runtime.request import Request
from graphwright.runtime.step_cost import StepCost
from graphwright.runtime.steps import Sequence as TokenSequence
from graphwright.runtime.steps import Step

__all__ = ["DraftSpeculator"]

_LEAST = 1 / 20  # of the cost of a token that guesses must save, as costs are not known exactly


class DraftSpeculator:
    """Puts a draft's guesses into the steps of the entry `decode`, at most `most` of a sequence, as
    far as they are worth what they cost the draft and the model, by its `cost`."""

    def __init__(self, decode: EntryPlan, most: int, cost: StepCost, draft: DraftModel) -> None:
        self.draft = draft
        self._decode, self._most, self._cost = decode, most, cost
        self._texts: dict[TokenSequence, DraftText] = {}
        self._known = {draws: Experience() for draws in (False, True)}

    def extend(self, step: Step, requests: Sequence[Request]) -> bool:
        """Adds drafts to a step's chunks that decode, as far as its entry and the requests have
        room and they are worth it. Were any added?

        requests: one for each chunk that chooses a token.
        """
        if step.entry != "decode":
            return False
        tokens = sum(chunk.count for chunk in step.chunks)
        rows = sum(chunk.rows for chunk in step.chunks)
        spare = min(self._decode.max_tokens - tokens, self._decode.max_rows - rows)
        texts = self._open(step, requests) if spare > 0 else []
        if not texts:
            return False
        positions = sum(chunk.start for chunk in step.chunks)
        costs = Costs(self._cost, self.draft.cost, positions / len(step.chunks))
        cost, said = self._cost.step(tokens, positions), float(len(requests))
        texts = _worthwhile(texts, spare, costs, said, cost)
        if not texts:
            return False
        self.draft.read([each.follower for each in texts])
        texts = [each for each in texts if not self.draft.is_behind(each.follower)]
        cost += self._guess(texts, spare, costs, said, cost)
        lengths = costs.lengths([each.rights for each in texts], said, cost)
        chunks = {chunk.sequence: chunk for chunk in step.chunks}
        for text, length in zip(texts, lengths, strict=True):
            if length:
                chunks[text.sequence].add_draft(text.guesses[:length])
        return any(lengths)

    def forget(self, sequence: TokenSequence) -> None:
        """The sequence has ended."""
        text = self._texts.pop(sequence, None)
        if text is not None:
            text.learn()
        self.draft.forget(sequence)

    def _open(self, step: Step, requests: Sequence[Request]) -> list[DraftText]:
        """The texts that the draft may go on with, whatever the others of the step do."""
        found = []
        for chunk, request in zip((e for e in step.chunks if e.chooses), requests, strict=True):
            known = len(chunk.sequence.tokens)
            room = min(self._most, request.left - 1, self.draft.context - known)
            if room > 0 and not chunk.is_prefill:
                text = self._text(request)
                if known >= text.rests_until and self._opens(text, request, room):
                    found.append(text)
        return found

    def _opens(self, text: DraftText, request: Request, room: int) -> bool:
        """Would guesses pay if the text were alone? Else one may be tried now and then, if there is
        any chance of that."""
        text.learn()
        follower, known = self.draft.follow(text.sequence), len(text.sequence.tokens)
        costs = Costs(self._cost, self.draft.cost, known)
        share = saving(costs, text.hope, self._most)
        saved = share * self._cost.step(1, known) * request.left
        if share > _LEAST and costs.read(follower.own.pending) <= saved:
            return text.open(room, pays=True)
        if share <= _LEAST < saving(costs, 1.0, self._most):
            return text.open(room, pays=False)
        text.rests_until = known + REST
        return False

    def _text(self, request: Request) -> DraftText:
        found = self._texts.get(request.sequence)
        if found is None:
            follower = self.draft.follow(request.sequence)
            found = DraftText(request, follower, self._known[request.draws])
            self._texts[request.sequence] = found
        return found

    def _guess(
        self, texts: Sequence[DraftText], spare: int, costs: Costs, said: float, cost: float
    ) -> float:
        """Lets the draft guess as long as that is worth it. What that has cost.

        spare: guesses that the step has room for. It says `said` tokens and costs `cost` without.
        """
        spent = 0.0
        while spare:
            chosen = _worthwhile(texts, spare, costs, said, cost + spent)
            if not chosen:
                break
            rows = self.draft.guess([each.follower for each in chosen])
            for text, logits in zip(chosen, rows, strict=True):
                said += text.guess(logits)
            spare -= len(chosen)
            spent += costs.guess(len(chosen))
            cost += costs.check * len(chosen)
        return spent


def _worthwhile(
    texts: Sequence[DraftText], spare: int, costs: Costs, said: float, cost: float
) -> list[DraftText]:
    """Those of which another guess is worth it, up to `spare`, and those that only try."""
    ranked = sorted((each for each in texts if each.room), key=lambda each: -each.next_hope)
    count = costs.best_round([each.next_hope for each in ranked[:spare]], said, cost)
    return [each for n, each in enumerate(ranked[:spare]) if n < count or each.only_tries]
