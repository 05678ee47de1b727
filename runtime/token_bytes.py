"""The bytes that a token stands for, also where they are only a part of a character."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["TokenBytes", "printable"]

_BYTE = {f"<0x{byte:02X}>": bytes([byte]) for byte in range(256)}


class TokenBytes:
    """Bytes of single tokens by the decoder of a tokenizer (an object of the package tokenizers).

    A decoder says how tokens become text together; here each is taken from inside of a text: the
    space that a word begins with stays, as it does behind other words.
    """

    def __init__(self, library: Any) -> None:
        self._library = library
        state = None if library.decoder is None else json.loads(library.decoder.__getstate__())
        self._convert = _conversion(_parts(state))

    def __call__(self, token: int) -> bytes:
        """The bytes of a token id, a special one those of its name; none if it is unknown."""
        name = self._library.id_to_token(token)
        if name is None:
            return b""
        if self._convert is not None:
            return self._convert(name)
        text: str = self._library.decode([token], skip_special_tokens=False)
        return text.encode()


def printable(content: bytes) -> str:
    r"""As text if it is UTF-8 as a whole, else with each byte above 127 as \xNN."""
    try:
        return content.decode()
    except UnicodeDecodeError:
        return content.decode("ascii", errors="backslashreplace")


def _parts(decoder: Any) -> list[Mapping[str, Any]]:
    """The decoders of a sequence, up to where they see the text as a whole."""
    if decoder is None:
        return []
    if decoder["type"] != "Sequence":
        return [decoder]
    found: list[Mapping[str, Any]] = []
    for each in decoder["decoders"]:
        if each["type"] == "Fuse":
            break
        found += _parts(each)
    return found


def _conversion(parts: list[Mapping[str, Any]]) -> Callable[[str], bytes] | None:
    """From a token's name to its bytes; None when one of the decoders is of another kind."""
    kinds = [each["type"] for each in parts]
    if kinds == ["ByteLevel"]:
        return _of_byte_level
    replaced: list[tuple[str, str]] = []
    for each in parts:
        if each["type"] == "Replace" and "String" in each["pattern"]:
            replaced.append((each["pattern"]["String"], each["content"]))
        elif each["type"] == "Metaspace":
            replaced.append((each["replacement"], " "))
        elif each["type"] != "ByteFallback":
            return None
    byte_names = _BYTE if "ByteFallback" in kinds else {}

    def convert(name: str) -> bytes:
        for old, new in replaced:
            name = name.replace(old, new)
        return byte_names.get(name) or name.encode()

    return convert if parts else None


def _of_byte_level(name: str) -> bytes:
    try:
        return bytes(_ALPHABET[character] for character in name)
    except KeyError:  # not made of bytes: a token that was added as a text
        return name.encode()


def _alphabet() -> dict[str, int]:
    """The characters by which GPT-2's vocabulary writes bytes: printable ones of Latin-1 stand for
    themselves, the others are numbered from 256."""
    own = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in own]
    shown = {chr(byte): byte for byte in own}
    return shown | {chr(256 + number): byte for number, byte in enumerate(others)}


_ALPHABET = _alphabet()
