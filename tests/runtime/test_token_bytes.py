"""Bytes of single tokens: together those of the text, whatever kind of tokenizer made them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shared_data import shared_path
from tokenizers import AddedToken, Tokenizer, decoders, models

from graphwright.runtime.token_bytes import TokenBytes, printable

DEMO = Path(__file__).parents[2] / "examples" / "demo-model" / "tokenizer.json"
TEXT = "naïve café, 日本語 👩‍👩‍👧\n  two  spaces\tand <0x41> Ġ done"


def fallback() -> Tokenizer:
    """Words begin with ▁, and what is not in the vocabulary becomes bytes."""
    vocab = {f"<0x{byte:02X}>": byte for byte in range(256)}
    vocab |= {"▁a": 256, "▁dog": 257, "é": 258, "▁": 259}
    tokenizer = Tokenizer(models.BPE(vocab, [], byte_fallback=True))
    parts: list[Any] = [
        decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
        decoders.Strip(content=" ", left=1, right=0),
    ]  # fmt: skip
    tokenizer.decoder = decoders.Sequence(parts)
    return tokenizer


@pytest.mark.parametrize(
    "name",
    ["demo", "models/stories260K-hf/tokenizer.json",
     *(f"data/tokenizers/{each}_tokenizer.json"
       for each in ("codegen_phi2", "gpt_neox_20B", "phi3_llama_spm"))],
)  # fmt: skip
def test_the_bytes_of_a_text_are_those_of_its_tokens(name: str) -> None:
    path = DEMO if name == "demo" else shared_path(name)
    tokenizer = Tokenizer.from_file(str(path))
    token_bytes = TokenBytes(tokenizer)
    ids = tokenizer.encode(TEXT, add_special_tokens=False).ids
    joined = b"".join(map(token_bytes, ids))
    assert joined.decode().removeprefix(" ") == TEXT
    # Those of a character that is in no vocabulary are the bytes of its UTF-8.
    parts = [token_bytes(each) for each in ids]
    assert any(printable(part).encode() != part for part in parts), "no character was in parts"
    assert token_bytes(tokenizer.get_vocab_size() + 1) == b""


@pytest.mark.parametrize(
    ("decoder", "names", "expected"),
    [
        (decoders.ByteLevel(), ["Ġa", "Ã", "ÿ", "ā"], [b" a", b"\xc3", b"\xff", b"\x01"]),
        (decoders.ByteLevel(), ["日 本", "  "], ["日 本".encode(), b"  "]),  # added as texts
        (decoders.Metaspace(), ["▁a", "b▁c", "<0x41>"], [b" a", b"b c", b"<0x41>"]),
        (decoders.WordPiece(), ["a"], [b"a"]),
        (None, ["▁a"], ["▁a".encode()]),
    ],
)  # fmt: skip
def test_kinds_of_decoders(decoder: Any, names: list[str], expected: list[bytes]) -> None:
    tokenizer = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, names[0]))
    if decoder is not None:
        tokenizer.decoder = decoder
    token_bytes = TokenBytes(tokenizer)
    assert [token_bytes(each) for each in range(len(names))] == expected


def test_a_special_token_is_its_name() -> None:
    tokenizer = fallback()
    tokenizer.add_special_tokens([AddedToken("<|end|>", special=True)])
    assert TokenBytes(tokenizer)(260) == b"<|end|>"


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 259), min_size=1, max_size=12))
def test_bytes_decode_as_the_tokenizer_decodes(ids: list[int]) -> None:
    """But for bytes that are no UTF-8, of which each decoder makes another number of U+FFFD."""
    tokenizer = fallback()
    joined = b"".join(map(TokenBytes(tokenizer), [256, *ids]))
    try:
        text = joined.decode()
    except UnicodeDecodeError:
        assert "\ufffd" in tokenizer.decode([256, *ids])
    else:
        assert tokenizer.decode([256, *ids]) == text.removeprefix(" ")


def test_printable() -> None:
    assert printable("é".encode()) == "é"
    assert printable(b"a\xc3") == "a\\xc3"
