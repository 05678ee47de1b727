"""Log probabilities over HTTP, in the shapes of the API, whole and streamed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from served_toy import Served, served, served_toy
from toy_model import toy_engine, toy_logits

from graphwright.runtime.log_probabilities import TokenLogprobs, token_logprobs
from graphwright.runtime.server.log_probabilities import chat_logprobs, text_logprobs

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
SAMPLED: dict[str, Any] = {
    "temperature": 3.0, "ignore_eos": True, "seed": 5, "max_tokens": 12, "return_token_ids": True,
}  # fmt: skip


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served_toy(tmp_path_factory.mktemp("toy")) as found:
        yield found


def names(toy: Served, ids: list[int]) -> list[str]:
    """The texts of ids, each of which is a character, a special token, or a half of é."""
    tokenizer = toy.engine.tokenizer
    assert tokenizer is not None
    half = {95: "bytes:\\xc3", 96: "bytes:\\xa9"}
    return [half.get(each) or tokenizer.token_bytes(each).decode() for each in ids]


def test_completions_have_four_lists(toy: Served) -> None:
    prompt = [0, 7, 9]
    (choice,) = toy.complete(prompt, logprobs=3, **SAMPLED)["choices"]
    ids, found = choice["token_ids"], choice["logprobs"]
    rows = [token_logprobs(toy_logits([*prompt, *ids[:n]]), ids[n], 3) for n in range(12)]
    assert set(found) == {"tokens", "token_logprobs", "top_logprobs", "text_offset"}
    assert found["tokens"] == names(toy, ids)
    assert np.allclose(found["token_logprobs"], [row.logprob for row in rows])
    for row, top in zip(rows, found["top_logprobs"], strict=True):
        expected = dict(zip(names(toy, [each for each, _ in row.top]), row.top, strict=True))
        (own,) = names(toy, [row.token_id])
        assert set(top) == {*expected, own} and top[own] == pytest.approx(row.logprob)
        assert list(top.values()) == sorted(top.values(), reverse=True)
    assert found["text_offset"][0] == 0
    assert found["text_offset"] == sorted(found["text_offset"])


def test_chats_have_an_object_for_each_token(toy: Served) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    body = {"messages": messages, "logprobs": True, "top_logprobs": 2, **SAMPLED}
    (choice,) = toy.post(CHAT, **body).json()["choices"]
    assert choice["logprobs"]["refusal"] is None
    content = choice["logprobs"]["content"]
    assert len(content) == 12
    for token, entry in zip(choice["token_ids"], content, strict=True):
        assert set(entry) == {"token", "logprob", "bytes", "top_logprobs"}
        assert len(entry["top_logprobs"]) == 2
        (name,) = names(toy, [token])
        assert entry["token"] == name.removeprefix("bytes:")
        if token < 95:
            assert bytes(entry["bytes"]).decode() == entry["token"]
        best = [each["logprob"] for each in entry["top_logprobs"]]
        assert best == sorted(best, reverse=True) and best[0] >= entry["logprob"]
        assert all(set(each) == {"token", "logprob", "bytes"} for each in entry["top_logprobs"])
    less = toy.post(CHAT, **{**body, "top_logprobs": 0}).json()["choices"][0]["logprobs"]["content"]
    assert less == [{**each, "top_logprobs": []} for each in content]


@pytest.mark.parametrize("path", [TEXT, CHAT])
def test_streamed_ones_join_to_the_whole(toy: Served, path: str) -> None:
    """Also of tokens whose text is held back, as it may become a stop text."""
    body: dict[str, Any] = {**SAMPLED, "n": 2, "stop": ["never there"]}
    if path == TEXT:
        body |= {"prompt": "Hello", "logprobs": 1}
    else:
        messages = [{"role": "user", "content": "Hello"}]
        body |= {"messages": messages, "logprobs": True, "top_logprobs": 1}
    for with_ids in (True, False):
        body["return_token_ids"] = with_ids
        whole = toy.post(path, **body).json()["choices"]
        parts: list[dict[str, Any]] = [{}, {}]
        for chunk in toy.stream(path, **body):
            for choice in chunk["choices"]:
                for name, each in (choice["logprobs"] or {}).items():
                    if each is not None:
                        parts[choice["index"]].setdefault(name, []).extend(each)
        for choice, found in zip(whole, parts, strict=True):
            assert found == {k: v for k, v in choice["logprobs"].items() if v is not None}
    plain = toy.post(path, **{**body, "logprobs": None, "top_logprobs": None}).json()["choices"]
    assert [each["logprobs"] for each in plain] == [None, None]


def test_minus_infinity_is_a_number_of_json_and_bytes_are_no_text(toy: Served) -> None:
    found = [TokenLogprobs(95, float("-inf"), ((95, float("-inf")), (40, -1.0)), 3)]
    tokenizer = toy.engine.tokenizer
    (entry,) = chat_logprobs(found, tokenizer)["content"]
    half = {"token": "\\xc3", "logprob": -9999.0, "bytes": [0xC3]}
    assert entry == {**half, "top_logprobs": [half, {"token": "F", "logprob": -1.0, "bytes": [70]}]}
    assert text_logprobs(found, tokenizer) == {
        "tokens": ["bytes:\\xc3"], "token_logprobs": [-9999.0],
        "top_logprobs": [{"F": -1.0, "bytes:\\xc3": -9999.0}], "text_offset": [3],
    }  # fmt: skip


def test_without_a_tokenizer_tokens_are_ids(tmp_path_factory: pytest.TempPathFactory) -> None:
    engine, _ = toy_engine(tmp_path_factory.mktemp("bare"))
    with served(engine) as bare:
        body = {"temperature": 0, "max_tokens": 2, "logprobs": 1, "return_token_ids": True}
        (choice,) = bare.complete([3, 4], **body)["choices"]
        expected = [f"token_id:{each}" for each in choice["token_ids"]]
        assert choice["logprobs"]["tokens"] == expected
        assert [list(each) for each in choice["logprobs"]["top_logprobs"]] == [
            [each] for each in expected
        ]
