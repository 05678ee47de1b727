"""Which tokens may come next in a text of a grammar, by the package llguidance."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable
from copy import copy
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from graphwright.runtime.errors import RequestError
from graphwright.runtime.grammar import JSON_WHITE_SPACE, Grammar
from graphwright.runtime.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

__all__ = ["GrammarMatcher", "Grammars"]

_KEPT = 32  # grammars that need not be compiled again
_NO_TOKEN = "no token of this model goes on with a text of it here"
_DRAWN = re.compile(r"\s+(\d+ \||\^)")  # a line of the source, and where in it the mistake is


class Grammars:
    """Compiles grammars for one tokenizer, and keeps the last ones.

    Nothing is imported before a grammar is asked for. `check` is for any thread.
    """

    def __init__(
        self, tokenizer: Tokenizer | None, vocab_size: int, eos_ids: Iterable[int]
    ) -> None:
        self._tokenizer, self._vocab_size = tokenizer, vocab_size
        self._eos_ids = {each for each in eos_ids if each < vocab_size}
        self._library_tokenizer: LLTokenizer | None = None
        self._lock = threading.Lock()
        self._compiled = lru_cache(_KEPT)(self._compile)

    def check(self, grammar: Grammar) -> None:
        """Raises RequestError when the grammar is wrong, or cannot be used here. What it compiles
        stays for `matcher`."""
        self._compiled(grammar)

    def matcher(self, grammar: Grammar, ignore_eos: bool = False) -> GrammarMatcher:
        """A matcher at the beginning of a text. ignore_eos: no end-of-text token may be chosen, so
        that a text goes on while it can. Raises RequestError as `check` does.
        """
        copy = self._compiled(grammar).deep_copy()
        assert self._library_tokenizer is not None, "it was read to compile"
        ends = set() if ignore_eos else self._eos_ids
        unused = set(self._library_tokenizer.eos_tokens) - ends
        return GrammarMatcher(copy, self._vocab_size, ends, unused)

    def _compile(self, grammar: Grammar) -> LLMatcher:
        try:
            from llguidance import LLMatcher, LLParserLimits
        except ImportError as error:
            raise RequestError(
                "an answer by a grammar needs llguidance, which this environment does not have. "
                "Install it: pip install 'graphwright[structured]'."
            ) from error
        with self._lock:
            if self._library_tokenizer is None:
                self._library_tokenizer = self._read_tokenizer()
            tokenizer = self._library_tokenizer
        try:
            source = _source(grammar)
        except ValueError as error:
            raise _refusal(grammar, str(error)) from error
        limits = LLParserLimits(verbose_errors=False)
        wrong, messages = LLMatcher.validate_grammar_with_warnings(source, tokenizer, limits=limits)
        if wrong:
            raise _refusal(grammar, messages[0])
        found = LLMatcher(tokenizer, source, log_level=0, limits=limits)
        if not found.is_error():
            found.compute_bitmask()  # the dearest one of some grammars, here for all their texts
        if found.is_error():
            raise _refusal(grammar, _failure(found))
        return found

    def _read_tokenizer(self) -> LLTokenizer:
        from llguidance import LLTokenizer

        if self._tokenizer is None:
            raise RequestError("the artifact has no tokenizer: no grammar can be kept to.")
        size = max(self._vocab_size, self._tokenizer.size)
        ends = sorted(self._eos_ids) or None  # None: one of the library's, which nobody may choose
        try:
            return LLTokenizer(self._tokenizer.definition(), size, ends)
        except Exception as error:  # the package raises several kinds
            raise RequestError(
                f"llguidance cannot read the artifact's tokenizer: {_line(str(error))}"
            ) from error


class GrammarMatcher:
    """How far a text of a grammar has come.

    ends: the end-of-text tokens that may be chosen. complete: the text is a word of the grammar,
    and none goes on from it, or an end-of-text token has been chosen.
    """

    def __init__(
        self, matcher: LLMatcher, vocab_size: int, ends: Iterable[int], unused_ends: Iterable[int]
    ) -> None:
        self.complete = False
        self.ends = frozenset(ends)
        self._matcher, self._vocab_size = matcher, vocab_size
        self._unused = [each for each in unused_ends if each < vocab_size]

    def allowed(self) -> NDArray[np.bool_]:
        """bool [V], True for the tokens that may come next; `ends` among them only if the text may
        end. Raises RequestError when no token fits.
        """
        found = self._allowed()
        if not found.any():
            raise RequestError(f"{_NO_TOKEN}.")
        return found

    def ahead(self) -> GrammarMatcher:
        """A matcher that has come as far, and may go on otherwise."""
        found = copy(self)
        found._matcher = self._matcher.deep_copy()
        return found

    def accept(self, token: int) -> None:
        """Goes on with a token that was allowed. Raises RequestError when no text of the grammar
        does, or it becomes too complex."""
        if not self._matcher.consume_token(token):
            raise RequestError(f"the grammar failed: {_line(_failure(self._matcher))}")
        self.complete = self._matcher.is_stopped()
        if not self.complete and not self.ends and self._matcher.is_accepting():
            self.complete = not self._allowed().any()

    def _allowed(self) -> NDArray[np.bool_]:
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        found = np.unpackbits(bits, count=self._vocab_size, bitorder="little").view(np.bool_)
        if self._matcher.is_error():
            raise RequestError(f"the grammar failed: {_line(_failure(self._matcher))}")
        found[self._unused] = False
        return found


def _source(grammar: Grammar) -> str:
    """As the package writes it. Raises ValueError."""
    from llguidance import LLMatcher, grammar_from

    if grammar.kind == "json_schema":
        return LLMatcher.grammar_from_json_schema(
            grammar.text, defaults={"whitespace_pattern": JSON_WHITE_SPACE}
        )
    return grammar_from(grammar.kind, grammar.text)


def _refusal(grammar: Grammar, message: str) -> RequestError:
    names = {"json_schema": "JSON schema", "regex": "regular expression", "choice": "choice"}
    name = names.get(grammar.kind, "grammar")
    return RequestError(f"this {name} cannot be kept to: {_line(message)}")


def _failure(matcher: LLMatcher) -> str:
    """Why a matcher failed. The package calls it NoExtensionBias when no token fits."""
    message = matcher.get_error()
    return _NO_TOKEN if message.startswith("NoExtensionBias") else message


def _line(message: Any) -> str:
    """The words of the package in one line, without its drawings, with a full stop."""
    text = str(message).partition("<non-verbose/>")[0]
    kept = [each for each in text.splitlines() if not _DRAWN.match(each)]
    return f"{' '.join(' '.join(kept).split()).rstrip('.')}."
