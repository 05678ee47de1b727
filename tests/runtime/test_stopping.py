"""Streaming text: pieces join to the whole, characters are never split, stop texts never shown."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shared_data import shared_path
from tokenizers import Tokenizer as Library
from tokenizers import decoders, models

from graphwright.runtime.stopping import Detokenizer, StopTexts


class Bytes:
    """256 ids, each one byte."""

    def decode(self, ids: list[int]) -> str:
        return bytes(ids).decode(errors="replace")


def fallback_decoder() -> Library:
    """A sentencepiece-like tokenizer: words begin with ▁, unknown characters are byte tokens."""
    vocab = {f"<0x{byte:02X}>": byte for byte in range(256)}
    vocab |= {"▁a": 256, "▁dog": 257, "s": 258, ".": 259}
    tokenizer = Library(models.BPE(vocab, [], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1, right=0),
        ]
    )
    return tokenizer


def pieces(decoder: object, prompt: list[int], ids: list[int]) -> list[str]:
    stream = Detokenizer(decoder, prompt)  # type: ignore[arg-type]
    return [*(stream.push(each) for each in ids), stream.flush()]


TEXT = "naïve café 日本語 👩‍👩‍👧 done" * 5


def test_characters_are_never_split() -> None:
    ids = list(TEXT.encode())
    parts = pieces(Bytes(), [], ids)
    assert "".join(parts) == TEXT
    assert not any("\ufffd" in part for part in parts)


def test_characters_of_byte_tokens_are_never_split() -> None:
    tokenizer = fallback_decoder()
    ids = [256, 257, 258, *"日本 é".encode(), 257, 259] * 4
    parts = pieces(tokenizer, [], ids)
    assert "".join(parts) == tokenizer.decode(ids)
    assert not any("\ufffd" in part for part in parts)


def test_the_space_at_the_joint_with_the_prompt() -> None:
    tokenizer = fallback_decoder()
    assert "".join(pieces(tokenizer, [256], [257, 258])) == " dogs"
    assert "".join(pieces(tokenizer, [], [257, 258])) == "dogs"
    assert "".join(pieces(tokenizer, [256] * 50, [257, 258])) == " dogs"


def test_bytes_that_are_no_text_come_out_in_the_end() -> None:
    parts = pieces(Bytes(), [], [65, 0xFF, 0xC3])
    assert parts == ["A", "", "", "\ufffd\ufffd"]
    endless = pieces(Bytes(), [], [0xFF] * 100)
    assert "".join(endless) == "\ufffd" * 100 and any(endless[:-1])


def test_a_real_tokenizer_streams_what_it_decodes() -> None:
    tokenizer = Library.from_file(str(shared_path("models/stories260K-hf/tokenizer.json")))
    random.seed(0)
    for text in ("Once upon a time, there was a café. 日本語 👍🏽!\n\n  Two  spaces", TEXT):
        ids = tokenizer.encode(text).ids
        assert "".join(pieces(tokenizer, ids[:1], ids[1:])) == tokenizer.decode(ids)
        for cut in random.sample(range(1, len(ids)), 10):
            if not tokenizer.decode(ids[:cut]).endswith("\ufffd"):
                shown = "".join(pieces(tokenizer, ids[:cut], ids[cut:]))
                assert tokenizer.decode(ids[:cut]) + shown == tokenizer.decode(ids)


@pytest.mark.parametrize(
    ("stops", "parts", "shown", "stopped"),
    [
        (["END"], ["a E", "N", "D b"], "a ", True),
        (["END"], ["a E", "N", "d b"], "a ENd b", False),
        (["aab"], ["a", "a", "a", "b", "c"], "a", True),
        (["x", "yz"], ["ab", "y", "zx"], "ab", True),
        (["\n\n"], ["one\n", "two\n", "\nthree"], "one\ntwo", True),
        ([], ["any", "thing"], "anything", False),
        (["long stop"], ["long st"], "long st", False),
    ],
)
def test_stop_texts(stops: list[str], parts: list[str], shown: str, stopped: bool) -> None:
    stream = StopTexts(stops)
    text = ""
    for part in parts:
        piece, found = stream.push(part)
        text += piece
        if found:
            break
    else:
        found = False
        text += stream.flush()
    assert (text, found) == (shown, stopped)


@given(st.text("ab", max_size=30), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
       st.lists(st.integers(0, 30), max_size=6))  # fmt: skip
def test_stop_texts_do_not_depend_on_the_pieces(
    text: str, stops: list[str], cuts: list[int]
) -> None:
    whole = min((text.find(stop) for stop in stops if stop in text), default=len(text))
    # What is found first is what is complete first: a longer stop text may begin earlier.
    ends = [text.find(stop) + len(stop) for stop in stops if stop in text]
    stream, shown, found = StopTexts(stops), "", False
    edges = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    for begin, end in itertools.pairwise(edges):
        piece, found = stream.push(text[begin:end])
        shown += piece
        if found:
            break
    assert found == bool(ends)
    if not found:
        assert shown + stream.flush() == text
    else:
        assert text.startswith(shown) and len(shown) >= whole
        assert not any(stop in shown for stop in stops)
