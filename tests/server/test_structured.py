"""Answers of a given form over HTTP, and changes of logits."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from served_toy import Served, served, served_toy
from toy_model import toy_engine, toy_greedy

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
SAMPLED: dict[str, Any] = {"temperature": 2.0, "seed": 5, "max_tokens": 40}
PAIRS = {"type": "array", "items": {"enum": ["a", 1, None]}, "minItems": 2, "maxItems": 4}
MESSAGES = [{"role": "user", "content": "Hi"}]


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served_toy(tmp_path_factory.mktemp("toy")) as found:
        yield found


def is_pairs(text: str) -> bool:
    found = json.loads(text)
    return 2 <= len(found) <= 4 and all(each in ("a", 1, None) for each in found)


def matches(pattern: str) -> Callable[[str], bool]:
    return lambda text: re.fullmatch(pattern, text) is not None


@pytest.mark.parametrize(
    ("asked", "good"),
    [
        ({"response_format": {"type": "json_schema", "json_schema": {
            "name": "pairs", "schema": PAIRS, "strict": True}}}, is_pairs),
        ({"structured_outputs": {"json": PAIRS}}, is_pairs),
        ({"guided_json": json.dumps(PAIRS)}, is_pairs),
        ({"structured_outputs": {"regex": "[a-c]{3}é"}}, matches("[a-c]{3}é")),
        ({"guided_regex": "[a-c]{3}é"}, matches("[a-c]{3}é")),
        ({"guided_choice": ["yes", "no"]}, matches("yes|no")),
        ({"structured_outputs": {"choice": ["yes", "no"]}}, matches("yes|no")),
        ({"guided_grammar": 'root ::= "x" | "(" root ")"'}, matches(r"\(*x\)*")),
    ],
)  # fmt: skip
@pytest.mark.parametrize("path", [TEXT, CHAT])
def test_answers_have_the_form(
    toy: Served, path: str, asked: dict[str, Any], good: Callable[[str], bool]
) -> None:
    source: dict[str, Any] = {"prompt": "Hi"} if path == TEXT else {"messages": MESSAGES}
    body = {**source, **SAMPLED, **asked, "n": 3, "logit_bias": {"40": 1}}
    answer = toy.post(path, **body)
    assert answer.status_code == 200, answer.text
    texts = []
    for choice in answer.json()["choices"]:
        text = choice["text"] if path == TEXT else choice["message"]["content"]
        assert choice["finish_reason"] == "stop" and good(text), text
        texts.append(text)
    streamed = [""] * 3
    for chunk in toy.stream(path, **body):
        for choice in chunk["choices"]:
            part = choice["text"] if path == TEXT else choice["delta"].get("content", "")
            streamed[choice["index"]] += part
    assert streamed == texts
    assert toy.is_idle()


def test_requests_with_and_without_a_form_run_together(toy: Served) -> None:
    def ask(number: int) -> Any:
        if number % 2:
            return toy.complete("Hi", guided_regex="[0-9]{6}", **SAMPLED)["choices"][0]["text"]
        body = {"temperature": 0, "ignore_eos": True, "max_tokens": 7, "return_token_ids": True}
        return toy.complete([1, 2 + number], **body)["choices"][0]["token_ids"]

    with ThreadPoolExecutor(8) as clients:
        found = list(clients.map(ask, range(8)))
    for number, answer in enumerate(found):
        if number % 2:
            assert re.fullmatch("[0-9]{6}", answer)
        else:
            assert answer == toy_greedy([1, 2 + number], 7)


def test_an_answer_that_no_token_goes_on_with_is_an_error(toy: Served) -> None:
    """The toy's vocabulary has no closing brace."""
    failed = toy.post(TEXT, prompt="Hi", guided_regex=r"a\}")
    assert failed.status_code == 500
    assert "no token of this model goes on" in failed.json()["error"]["message"]
    assert toy.is_idle() and toy.client.get("/health").status_code == 200


def test_penalties_and_biases_reach_the_sampler(toy: Served) -> None:
    body = {"temperature": 0, "max_tokens": 5, "ignore_eos": True, "return_token_ids": True}
    biased = toy.complete([3], **body, logit_bias={"7": 100})["choices"][0]["token_ids"]
    assert biased == [7] * 5
    both = {"logit_bias": {"7": 22, "8": 21}, "presence_penalty": 2, "frequency_penalty": 2}
    turns = toy.complete([3], **body, **both)["choices"][0]["token_ids"]
    assert set(turns) == {7, 8}


def test_what_to_install_is_said(toy: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    answer = toy.post(TEXT, prompt="Hi", guided_regex="never asked before")
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "guided_regex"
    assert "pip install 'graphwright[structured]'" in answer.json()["error"]["message"]


def test_without_a_tokenizer_there_is_no_form(tmp_path_factory: pytest.TempPathFactory) -> None:
    engine, _ = toy_engine(tmp_path_factory.mktemp("bare"))
    with served(engine) as bare:
        answer = bare.post(TEXT, prompt=[1], guided_regex="a", return_token_ids=True)
        assert answer.status_code == 400
        assert "no grammar can be kept to" in answer.json()["error"]["message"]
