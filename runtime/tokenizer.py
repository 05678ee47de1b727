"""The artifact's tokenizer: text to ids and back. Imports its package when there is one to read."""

from __future__ import annotations

from typing import Any

from graphwright.runtime.artifact import Artifact
from graphwright.runtime.errors import ArtifactError, RequestError
from graphwright.runtime.token_bytes import TokenBytes

__all__ = ["Tokenizer", "eos_ids", "read_tokenizer"]


class Tokenizer:
    """tokenizer.json with the few settings of tokenizer_config.json that completion needs."""

    def __init__(self, definition: bytes, config: dict[str, Any]) -> None:
        from tokenizers import Tokenizer as Library

        try:
            self._library = Library.from_buffer(definition)
        except Exception as error:  # the package raises bare Exception
            raise ArtifactError(f"the artifact's tokenizer.json is not usable: {error}.") from error
        self._library.no_truncation()
        self._library.no_padding()
        bos = self.id_of(_content(config.get("bos_token")))
        start = self._library.encode("", add_special_tokens=True).ids
        adds = bool(start and start[0] == bos)
        self._prepend = bos if config.get("add_bos_token") and not adds else None
        # What every text begins with: None when the tokenizer adds nothing.
        self.bos_id = self._prepend if self._prepend is not None else (bos if adds else None)
        self.eos_id = self.id_of(_content(config.get("eos_token")))
        self.token_bytes = TokenBytes(self._library)

    @property
    def size(self) -> int:
        """How many ids there are, those of added tokens included."""
        return int(self._library.get_vocab_size(with_added_tokens=True))

    def tokens(self) -> dict[int, str]:
        """The token of every id, added ones included."""
        found: dict[str, int] = self._library.get_vocab(with_added_tokens=True)
        return {number: token for token, number in found.items()}

    def definition(self) -> str:
        """The tokenizer as the text of a tokenizer.json."""
        text: str = self._library.to_str()
        return text

    def id_of(self, token: str | None) -> int | None:
        """The id of a token by its text."""
        return None if token is None else self._library.token_to_id(token)

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Token ids of `text`; `special`: with the BOS (and others) that the tokenizer adds.

        Raises RequestError for lone surrogates, which stray bytes of a command line become.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise RequestError(
                f"the prompt is not valid UTF-8 text: its character {error.start} is a stray byte."
            ) from error
        ids: list[int] = self._library.encode(text, add_special_tokens=special).ids
        if special and self._prepend is not None and ids[:1] != [self._prepend]:
            ids = [self._prepend, *ids]
        return ids

    def decode(self, ids: list[int]) -> str:
        """The text of `ids` without special tokens; bytes that are no UTF-8 become U+FFFD."""
        text: str = self._library.decode(ids, skip_special_tokens=True)
        return text


def read_tokenizer(artifact: Artifact) -> Tokenizer | None:
    """The tokenizer of an artifact; None when it was compiled without one. Raises ArtifactError."""
    if "tokenizer.json" not in artifact:
        return None
    config = artifact.settings("tokenizer_config.json")
    return Tokenizer(artifact.read("tokenizer.json"), config)


def _content(token: Any) -> str | None:
    """A token in tokenizer_config.json is a text, or an object with the text in `content`."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None


def eos_ids(config: dict[str, Any], tokenizer: Tokenizer | None) -> frozenset[int]:
    """The ids that end a text, by a model's generation_config.json, else by its tokenizer.

    Raises ArtifactError for what are no ids.
    """
    found = config.get("eos_token_id", tokenizer.eos_id if tokenizer else None)
    ids = found if isinstance(found, list) else [] if found is None else [found]
    wrong = next(
        (each for each in ids if isinstance(each, bool) or not isinstance(each, int)), None
    )
    if wrong is not None:
        raise ArtifactError(
            f"eos_token_id in the model's generation_config.json has {wrong!r}, which is no token "
            "id: compile the model again with one, a list of some, or null."
        )
    return frozenset(ids)
