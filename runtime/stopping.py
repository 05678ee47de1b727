"""Text while it is being generated: no half characters, and nothing of a stop text ever shown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

__all__ = ["Decoder", "Detokenizer", "StopTexts"]

_REPLACEMENT = "\ufffd"
_CONTEXT = 6  # ids kept before new ones: they decide about spaces at the joint
_LONGEST_WAIT = 24  # replacement characters at the end after which nothing better will come


class Decoder(Protocol):
    """The part of a tokenizer that is needed here."""

    def decode(self, ids: list[int]) -> str:
        """The text of these ids."""


class Detokenizer:
    """Ids in, text out, piece by piece; the pieces join to the text that follows the prompt.

    A window of ids is decoded again for each new one, and what is new at its end is given out,
    except a trailing run of U+FFFD: it may be the first bytes of a character.
    """

    def __init__(self, decoder: Decoder, prompt: Sequence[int]) -> None:
        self._decoder = decoder
        self._window = self._tail(list(prompt))
        self._shown = len(_stable(decoder.decode(self._window)))

    def push(self, token: int) -> str:
        """The text that became certain with `token`; often one word, sometimes empty."""
        self._window.append(token)
        text = self._decoder.decode(self._window)
        certain = _stable(text)
        if len(text) - len(certain) > _LONGEST_WAIT:
            certain = text
        piece = certain[self._shown :]
        self._shown = max(self._shown, len(certain))
        if len(certain) == len(text) and len(self._window) > 4 * _CONTEXT:
            self._window = self._tail(self._window)
            self._shown = len(self._decoder.decode(self._window))
        return piece

    def flush(self) -> str:
        """What is still held back; the output ends here."""
        piece = self._decoder.decode(self._window)[self._shown :]
        self._shown += len(piece)
        return piece

    def _tail(self, ids: list[int]) -> list[int]:
        """The last few ids, more if they would begin inside a character."""
        for count in range(_CONTEXT, 4 * _CONTEXT):
            if not self._decoder.decode(ids[-count:]).startswith(_REPLACEMENT):
                return ids[-count:]
        return ids[-_CONTEXT:]


def _stable(text: str) -> str:
    return text.rstrip(_REPLACEMENT)


class StopTexts:
    """Passes text on until one of `texts` appears, holding back what may become one of them."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = tuple(texts)
        self._held = ""

    def push(self, piece: str) -> tuple[str, bool]:
        """(text to show, whether a stop text was found). The stop text is not shown."""
        if not self._texts:
            return piece, False
        text = self._held + piece
        found = [at for stop in self._texts if (at := text.find(stop)) >= 0]
        if found:
            self._held = ""
            return text[: min(found)], True
        keep = max(self._overlap(text, stop) for stop in self._texts)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], False

    def flush(self) -> str:
        """What is still held back; the output ends without a stop text."""
        text, self._held = self._held, ""
        return text

    @staticmethod
    def _overlap(text: str, stop: str) -> int:
        """Length of the longest end of `text` that `stop` begins with."""
        for length in range(min(len(text), len(stop) - 1), 0, -1):
            if text.endswith(stop[:length]):
                return length
        return 0
