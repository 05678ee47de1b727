"""Prompts that are said before what follows them: `echo` of /v1/completions."""

from __future__ import annotations

from dataclasses import dataclass, replace

from graphwright.runtime.request import Piece

__all__ = ["Echo"]


@dataclass(frozen=True)
class Echo:
    """The text of a prompt, put in front of each of its choices. tells: with log probabilities."""

    text: str
    tells: bool

    def told(self, piece: Piece, first: bool) -> Piece:
        """A piece of a choice as it is told: the first one begins with the prompt, and places of
        tokens in the text count from the prompt's start.
        """
        found = [
            replace(each, text_offset=len(self.text) + each.text_offset)
            for each in piece.logprobs or ()
        ]
        if first:
            found = [*(piece.prompt_logprobs or ()), *found]
            piece = replace(piece, text=self.text + piece.text)
        return replace(piece, logprobs=tuple(found) if self.tells else None)
