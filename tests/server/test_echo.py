"""Prompts that are said before what follows them, with their log probabilities: how evaluation
harnesses score texts over HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from served_toy import Served, served, served_toy
from toy_model import toy_engine, toy_logits

from graphwright.runtime.log_probabilities import token_logprobs

TEXT = "/v1/completions"
GREEDY: dict[str, Any] = {"temperature": 0, "ignore_eos": True}


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served_toy(tmp_path_factory.mktemp("toy"), prefix_cache=True) as found:
        yield found


def test_the_prompt_comes_first(toy: Served) -> None:
    for prompt, text in (("Hello", "Hello"), ([0, 43, 72], "If")):
        plain = toy.complete(prompt, max_tokens=4, **GREEDY)
        told = toy.complete(prompt, max_tokens=4, echo=True, **GREEDY)
        assert told["choices"][0]["text"] == text + plain["choices"][0]["text"]
        assert told["choices"][0]["logprobs"] is None
        assert told["usage"]["completion_tokens"] == 4
        assert told["usage"]["prompt_tokens"] == plain["usage"]["prompt_tokens"]


def test_each_prompt_of_several_and_each_of_its_choices(toy: Served) -> None:
    body = {"n": 2, "max_tokens": 3, "temperature": 2.0, "seed": 4, "ignore_eos": True}
    plain = toy.complete(["ab", "c"], **body)["choices"]
    told = toy.complete(["ab", "c"], echo=True, logprobs=0, **body)["choices"]
    for one, other, text in zip(plain, told, ["ab", "ab", "c", "c"], strict=True):
        assert other["text"] == text + one["text"]
        assert len(other["logprobs"]["tokens"]) == 1 + len(text) + 3


def test_a_harness_scores_a_continuation(toy: Served) -> None:
    """By the tokens behind its context, and whether each is the likeliest."""
    context, text = [0, 7, 9], [30, 41, 2]
    (choice,) = toy.complete([*context, *text], max_tokens=1, logprobs=1, echo=True, temperature=0,
                             seed=1)["choices"]  # fmt: skip
    found = choice["logprobs"]
    assert found["token_logprobs"][0] is None and found["top_logprobs"][0] is None
    rows = [
        token_logprobs(toy_logits([*context, *text[:place]]), text[place], 1) for place in range(3)
    ]
    assert np.allclose(found["token_logprobs"][3:-1], [row.logprob for row in rows])
    best = [max(top.values()) for top in found["top_logprobs"][3:-1]]
    assert np.allclose(best, [row.top[0][1] for row in rows])
    assert len(found["tokens"]) == 7
    assert found["text_offset"] == sorted(found["text_offset"])


def test_only_the_prompt(toy: Served) -> None:
    for logprobs in (None, 2):
        found = toy.complete("Hello", max_tokens=0, echo=True, logprobs=logprobs)
        (choice,) = found["choices"]
        assert (choice["text"], choice["finish_reason"]) == ("Hello", "length")
        assert found["usage"]["completion_tokens"] == 0
        assert (choice["logprobs"] is None) == (logprobs is None)
    assert choice["logprobs"]["tokens"] == ["<s>", "H", "e", "l", "l", "o"]
    assert choice["logprobs"]["text_offset"] == [0, 0, 1, 2, 3, 4]


def test_offsets_count_from_the_start_of_the_prompt(toy: Served) -> None:
    (choice,) = toy.complete("abc", max_tokens=9, echo=True, logprobs=0, temperature=3.0, seed=2,
                             ignore_eos=True)["choices"]  # fmt: skip
    found = choice["logprobs"]
    for name, at in zip(found["tokens"], found["text_offset"], strict=True):
        if name not in ("<s>", "</s>") and not name.startswith("bytes:"):
            assert choice["text"][at:].lstrip("\ufffd").startswith(name), (name, at)


@pytest.mark.parametrize("logprobs", [None, 1])
def test_streamed_it_is_the_same(toy: Served, logprobs: int | None) -> None:
    body = {"max_tokens": 5, "echo": True, "logprobs": logprobs, **GREEDY}
    whole = toy.complete(["Hello", "you"], **body)["choices"]
    texts, tokens = ["", ""], [[], []]  # type: tuple[list[str], list[list[str]]]
    for chunk in toy.stream(TEXT, prompt=["Hello", "you"], **body):
        for choice in chunk["choices"]:
            texts[choice["index"]] += choice["text"]
            tokens[choice["index"]] += (choice["logprobs"] or {}).get("tokens", [])
    assert texts == [each["text"] for each in whole]
    if logprobs is not None:
        assert tokens == [each["logprobs"]["tokens"] for each in whole]


def test_without_a_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> None:
    engine, _ = toy_engine(tmp_path_factory.mktemp("bare"))
    with served(engine) as bare:
        body = {"temperature": 0, "max_tokens": 1, "logprobs": 0, "return_token_ids": True}
        (choice,) = bare.complete([3, 4], echo=True, **body)["choices"]
        expected = [f"token_id:{each}" for each in (3, 4, *choice["token_ids"])]
        assert choice["logprobs"]["tokens"] == expected and len(choice["token_ids"]) == 1


def test_when_an_answer_may_end(toy: Served) -> None:
    """min_tokens and stop_token_ids, in both endpoints."""
    greedy = toy.complete([5, 6], max_tokens=12, return_token_ids=True, **GREEDY)["choices"][0]
    ids = greedy["token_ids"]
    stop = ids[4]
    body = {"max_tokens": 12, "return_token_ids": True, "stop_token_ids": [stop], **GREEDY}
    (choice,) = toy.complete([5, 6], **body)["choices"]
    assert choice["token_ids"] == ids[: ids.index(stop) + 1]
    assert choice["finish_reason"] == "stop"
    (choice,) = toy.complete([5, 6], min_tokens=9, **body)["choices"]
    assert stop not in choice["token_ids"][:9] and len(choice["token_ids"]) >= 9
    chat = toy.post("/v1/chat/completions", messages=[{"role": "user", "content": "a"}],
                    min_tokens=7, temperature=0, max_tokens=7).json()  # fmt: skip
    assert chat["usage"]["completion_tokens"] == 7
