"""What `speculate` asks for, and whether a model can do that."""

from __future__ import annotations

import re
from dataclasses import dataclass

from graphwright.runtime.errors import RequestError
from graphwright.runtime.plan import Plan

__all__ = ["SpeculationOptions"]

_ASKED = re.compile(r"(lookup|draft:(?P<file>.+?))(:(?P<most>[0-9]+))?", re.DOTALL)


@dataclass(frozen=True)
class SpeculationOptions:
    """draft: the artifact of the model that guesses; None: guesses are looked up in the text. most:
    the most tokens that are guessed of a sequence at a time."""

    draft: str | None
    most: int

    @classmethod
    def parse(cls, asked: str, plan: Plan, *, overlaps: bool) -> SpeculationOptions:
        """Of 'lookup', 'draft:FILE', or either with ':N' behind it, for the model with this plan.
        overlaps: do its steps, as on a GPU? Raises RequestError where that cannot be."""
        decode = plan.entries["decode"]
        limit = min(decode.max_tokens, decode.max_rows) - 1
        if limit < 1:
            raise RequestError(
                "speculation needs steps of several tokens, and this artifact decodes one at a "
                "time. Leave speculate out."
            )
        match = _ASKED.fullmatch(asked)
        most = int(match["most"] or limit) if match else 0
        if not match or not 1 <= most <= limit:
            raise RequestError(
                "speculate must be 'lookup' or 'draft:FILE', either with or without ':N' behind "
                f"it, N from 1 to {limit}, not {asked!r}."
            )
        if not plan.goes_back:
            raise RequestError(
                "speculation takes back tokens that were guessed wrong, and this model cannot: it "
                "has recurrent or rolling states, which hold all tokens so far. Leave speculate "
                "out."
            )
        if overlaps:
            raise RequestError(
                "speculation is for CPUs: on a GPU the next step starts before the tokens of this "
                "one are known, and nothing can be guessed from them. Leave speculate out."
            )
        return cls(match["file"], most)
