"""What the server refuses, and how it says so."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from served_toy import Served, served, served_toy
from toy_model import VOCAB, ToyLibrary, word_tokenizer, write_toy

from graphwright.runtime.engine import Engine

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
USER = {"role": "user", "content": "Hi"}
TOOL = {"type": "function", "function": {"name": "f"}}


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served_toy(tmp_path_factory.mktemp("toy"), queue=2) as found:
        yield found


def error_of(answer: httpx2.Response, status: int) -> dict[str, Any]:
    """The error in an answer, which must have the shape that clients of the API know."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert set(answer.json()) == {"error"}
    error: dict[str, Any] = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == ("server_error" if status >= 500 else "invalid_request_error")
    assert error["message"].endswith((".", "'"))
    return error


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({}, "prompt", "'prompt' is missing"),
        ({"prompt": 3}, "prompt", "a text, a list of token ids"),
        ({"prompt": []}, "prompt", "a text, a list of token ids"),
        ({"prompt": ["a", [1]]}, "prompt", "a text, a list of token ids"),
        ({"prompt": [True]}, "prompt", "a text, a list of token ids"),
        ({"prompt": ""}, "prompt", "the prompt is empty"),
        ({"prompt": [VOCAB]}, "prompt", f"the token id {VOCAB}"),
        ({"prompt": [-1]}, "prompt", "the token id -1"),
        ({"prompt": "a", "max_tokens": 0}, "max_tokens", "1 or more, not 0"),
        ({"prompt": "a", "max_tokens": 1.5}, "max_tokens", "must be a whole number, not 1.5"),
        ({"prompt": "a", "max_tokens": 1, "max_completion_tokens": 2}, "max_tokens", "give one"),
        ({"prompt": "a", "temperature": -1}, "temperature", "0 or more, not -1"),
        ({"prompt": "a", "temperature": "hot"}, "temperature", "must be a number, not 'hot'"),
        ({"prompt": "a", "temperature": True}, "temperature", "must be a number, not True"),
        ({"prompt": "a", "temperature": 10**400}, "temperature", "must be a number"),
        ({"prompt": "a", "top_p": 0}, "top_p", "above 0 and at most 1"),
        ({"prompt": "a", "top_k": -1}, "top_k", "0 for all"),
        ({"prompt": "a", "min_p": 2}, "min_p", "from 0 to 1"),
        ({"prompt": "a", "repetition_penalty": 0}, "repetition_penalty", "above 0"),
        ({"prompt": "a", "seed": -1}, "seed", "0 or more, not -1"),
        ({"prompt": "a", "stop": 3}, "stop", "a text or a list of texts"),
        ({"prompt": "a", "stop": [""]}, "stop", "must not be empty"),
        ({"prompt": "a", "n": 0}, "n", "1 or more, not 0"),
        ({"prompt": "a", "n": 7}, "n", "7 sequences; this server holds at most 6"),
        ({"prompt": ["a"] * 4, "n": 2}, "n", "8 sequences"),
        ({"prompt": "a", "stream": 1}, "stream", "true or false, not 1"),
        ({"prompt": "a", "stream_options": {}}, "stream_options", "set 'stream'"),
        ({"prompt": "a", "stream": True, "stream_options": {"x": 1}}, "stream_options.x",
         "unknown"),
        ({"prompt": "a", "unheard_of": 1}, "unheard_of", "'unheard_of' is unknown"),
        ({"prompt": "a", "messages": [USER]}, "messages", "unknown"),
        ({"prompt": "a", "logprobs": 6}, "logprobs", "from 0 to 5, not 6"),
        ({"prompt": "a", "logprobs": -1}, "logprobs", "from 0 to 5, not -1"),
        ({"prompt": "a", "logprobs": True}, "logprobs", "must be a whole number, not True"),
        ({"prompt": "a", "top_logprobs": 1}, "top_logprobs", "unknown"),
        ({"prompt": "a", "echo": 1}, "echo", "true or false, not 1"),
        ({"prompt": "a", "echo": True, "max_tokens": -1}, "max_tokens", "0 or more, not -1"),
        ({"prompt": "a", "min_tokens": -1}, "min_tokens", "0 or more, not -1"),
        ({"prompt": "a", "min_tokens": 2, "guided_regex": "ab"}, "min_tokens", "a grammar says"),
        ({"prompt": "a", "stop_token_ids": 3}, "stop_token_ids", "must be a list, not 3"),
        ({"prompt": "a", "stop_token_ids": ["a"]}, "stop_token_ids", "a whole number, not 'a'"),
        ({"prompt": "a", "stop_token_ids": [VOCAB]}, "stop_token_ids", f"0 to {VOCAB - 1}"),
        ({"prompt": "a", "suffix": "b"}, "suffix", "not supported"),
        ({"prompt": "a", "best_of": 2}, "best_of", "not supported"),
        ({"prompt": "a", "logit_bias": {"5": 101}}, "logit_bias",
         "the token 5 must be from -100 to 100, not 101"),
        ({"prompt": "a", "logit_bias": {"5": "x"}}, "logit_bias", "not 'x'"),
        ({"prompt": "a", "logit_bias": {"-5": 1}}, "logit_bias", "token ids, not '-5'"),
        ({"prompt": "a", "logit_bias": {"a": 1}}, "logit_bias", "token ids, not 'a'"),
        ({"prompt": "a", "logit_bias": {str(VOCAB): 1}}, "logit_bias", f"0 to {VOCAB - 1}"),
        ({"prompt": "a", "logit_bias": [1]}, "logit_bias", "must be an object"),
        ({"prompt": "a", "frequency_penalty": 2.5}, "frequency_penalty", "from -2 to 2, not 2.5"),
        ({"prompt": "a", "presence_penalty": -3}, "presence_penalty", "from -2 to 2, not -3"),
        ({"prompt": "a", "presence_penalty": "x"}, "presence_penalty", "a number, not 'x'"),
        ({"prompt": "a", "response_format": {"type": "xml"}}, "response_format.type", "not 'xml'"),
        ({"prompt": "a", "response_format": {"type": "text", "x": 1}}, "response_format.x",
         "unknown"),
        ({"prompt": "a", "response_format": {"type": "json_schema"}},
         "response_format.json_schema.schema", "is missing"),
        ({"prompt": "a", "response_format": {"type": "json_schema", "json_schema":
          {"schema": {"type": "nothing"}}}}, "response_format", "Invalid type: nothing"),
        ({"prompt": "a", "response_format": {"type": "json_schema", "json_schema":
          {"schema": {"not": {}}}}}, "response_format", 'Unimplemented keys: ["not"]'),
        ({"prompt": "a", "guided_regex": "(a"}, "guided_regex", "unclosed group."),
        ({"prompt": "a", "guided_regex": 3}, "guided_regex", "must be a text, not 3"),
        ({"prompt": "a", "guided_choice": []}, "guided_choice", "must be a list of texts"),
        ({"prompt": "a", "guided_choice": ["a", ""]}, "guided_choice", "not empty"),
        ({"prompt": "a", "guided_choice": "ab"}, "guided_choice", "must be a list of texts"),
        ({"prompt": "a", "guided_grammar": "x"}, "guided_grammar", "Expected ::="),
        ({"prompt": "a", "guided_json": "{"}, "guided_json", "is not JSON"),
        ({"prompt": "a", "guided_json": "3"}, "guided_json", "must be an object, not 3"),
        ({"prompt": "a", "structured_outputs": {"xml": 1}}, "structured_outputs.xml", "unknown"),
        ({"prompt": "a", "structured_outputs": {"regex": "a"}, "guided_regex": "b"},
         "guided_regex", "give one of them"),
    ],
)  # fmt: skip
def test_bad_completions(toy: Served, body: dict[str, Any], param: str, words: str) -> None:
    error = error_of(toy.post(TEXT, **body), 400)
    assert (error["param"], words in error["message"]) == (param, True), error
    assert toy.live() == (0, 0)


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({}, "messages", "at least one message"),
        ({"messages": "Hi"}, "messages", "must be a list, not 'Hi'"),
        ({"messages": ["Hi"]}, None, "messages[0] must be a JSON object"),
        ({"messages": [{"content": "Hi"}]}, "messages[0].role", "missing"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "a text or a list"),
        ({"messages": [{**USER, "mood": 1}]}, "messages[0].mood", "unknown"),
        ({"messages": [{**USER, "tool_calls": [{"function": {"arguments": "{"}}]}]},
         "messages[0].tool_calls[0].function.arguments", "is not JSON"),
        ({"messages": [{**USER, "tool_calls": [{"x": 1}]}]}, "messages[0].tool_calls[0].x",
         "unknown"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
         "messages[0].content", "'image_url'"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages", "there is no role tool"),
        ({"messages": [USER], "prompt": "a"}, "prompt", "unknown"),
        ({"messages": [USER], "tools": [{}]}, "tools[0].type", "must be 'function', not None"),
        ({"messages": [USER], "tools": [{"type": "function"}]}, "tools[0].function.name",
         "1 to 64 letters"),
        ({"messages": [USER], "tools": [{"type": "function", "function": {"name": "a b"}}]},
         "tools[0].function.name", "not 'a b'"),
        ({"messages": [USER], "tools": [TOOL, TOOL], "tool_choice": "required"}, "tools",
         "the same name"),
        ({"messages": [USER], "tools": [TOOL]}, "tool_choice", "shows no calls with arguments"),
        ({"messages": [USER], "tools": [TOOL], "tool_choice": "auto"}, "tool_choice",
         "give 'tool_choice' as 'required'"),
        ({"messages": [USER], "tools": [TOOL], "tool_choice": "always"}, "tool_choice",
         "not 'always'"),
        ({"messages": [USER], "tools": [TOOL],
          "tool_choice": {"type": "function", "function": {"name": "g"}}}, "tool_choice",
         "not 'g'"),
        ({"messages": [USER], "tools": [TOOL], "tool_choice": "required"}, "tools",
         "no place for tools"),
        ({"messages": [USER], "tools": [TOOL], "tool_choice": "required", "guided_regex": "a"},
         "guided_regex", "'tools' and 'guided_regex' both say"),
        ({"messages": [USER], "tools": [{"type": "function", "function": {
          "name": "f", "parameters": {"type": "x"}}}], "tool_choice": "required"}, "tools",
         "Invalid type: x"),
        ({"messages": [USER], "tool_choice": "required"}, "tool_choice", "needs 'tools'"),
        ({"messages": [USER], "functions": [{}]}, "functions", "not supported"),
        ({"messages": [USER], "response_format": "json"}, "response_format", "an object"),
        ({"messages": [USER], "logprobs": 3}, "logprobs", "true or false, not 3"),
        ({"messages": [USER], "top_logprobs": 2}, "top_logprobs", "needs 'logprobs'"),
        ({"messages": [USER], "logprobs": True, "top_logprobs": 21}, "top_logprobs", "0 to 20"),
        ({"messages": [USER], "modalities": ["audio"]}, "modalities", "not supported"),
        ({"messages": [USER], "reasoning_effort": "low"}, "reasoning_effort", "not supported"),
        ({"messages": [USER], "chat_template_kwargs": {"tools": []}}, "messages", "'tools'"),
    ],
)  # fmt: skip
def test_bad_chats(toy: Served, body: dict[str, Any], param: str | None, words: str) -> None:
    error = error_of(toy.post(CHAT, **body), 400)
    assert (error["param"], words in error["message"]) == (param, True), error


def test_a_prompt_longer_than_the_context_has_a_code_of_its_own(toy: Served) -> None:
    for path, body in ((TEXT, {"prompt": "a" * 70}), (CHAT, {"messages": [USER] * 30})):
        error = error_of(toy.post(path, **body), 400)
        assert error["code"] == "context_length_exceeded"
        assert "but the context holds 64" in error["message"]
    mixed = error_of(toy.post(TEXT, prompt=["a", "a" * 70]), 400)
    assert mixed["code"] == "context_length_exceeded"
    assert toy.is_idle()  # the prompt that was right went, too


def test_streams_are_refused_before_they_begin(toy: Served) -> None:
    error_of(toy.post(TEXT, prompt=[VOCAB], stream=True), 400)
    error_of(toy.post(TEXT, prompt="a", stream=True, suffix="b"), 400)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{", "the body is not JSON"),
        (b"", "the body is not JSON"),
        (b"\xff", "the body is not JSON"),
        (b"[1]", "must be a JSON object, not [1]"),
        (b'{"prompt": "a", "temperature": NaN}', "must be a number, not nan"),
        (b'{"prompt": "a", "temperature": 1e999}', "must be a number, not inf"),
        (b'{"prompt": "\\ud800"}', "not valid UTF-8 text: its character 0"),
        (b'{"prompt": "a", "\\ud800": 1}', "the parameter '\\ud800' is unknown"),
        (b'{"prompt": "a", "model": "\\ud800"}', "the model '\\ud800' is not served here"),
        (b"[" * 100_000, "the body is not JSON"),
    ],
)
def test_bodies_that_are_none(toy: Served, content: bytes, words: str) -> None:
    headers = {"content-type": "application/json; charset=utf-8"}
    answer = toy.client.post(TEXT, content=content, headers=headers)
    status = 404 if b"model" in content else 400
    assert words in error_of(answer, status)["message"]


def test_other_content_types_and_huge_bodies(toy: Served) -> None:
    answer = toy.client.post(TEXT, content=b"{}", headers={"content-type": "text/plain"})
    assert "must be application/json, not 'text/plain'" in error_of(answer, 415)["message"]
    answer = toy.client.post(
        TEXT, content=b" " * ((16 << 20) + 1), headers={"content-type": "application/json"}
    )
    error_of(answer, 413)


def test_addresses_methods_and_models_that_are_not_there(toy: Served) -> None:
    assert "nothing at '/v2/x'" in error_of(toy.client.get("/v2/x"), 404)["message"]
    answer = toy.client.get(TEXT)
    assert "does not take GET" in error_of(answer, 405)["message"]
    assert answer.headers["allow"] == "POST"
    error = error_of(toy.post(TEXT, prompt="a", model="other"), 404)
    assert (error["param"], error["code"]) == ("model", "model_not_found")
    assert "'toy' is" in error["message"]
    error_of(toy.client.get("/v1/models/other"), 404)
    assert toy.client.get("/v1/models/toy").json()["id"] == "toy"


def test_the_key(tmp_path: Path) -> None:
    with served_toy(tmp_path, api_key="secret") as toy:
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "secret"},
                        {"authorization": "bearer secret"}):  # fmt: skip
            for path in ("/v1/models", "/metrics", "/version"):
                answer = toy.client.get(path, headers=headers)
                assert error_of(answer, 401)["code"] == "invalid_api_key"
                assert answer.headers["www-authenticate"] == "Bearer"
        assert toy.client.get("/health").json()["status"] == "ok"
        toy.client.headers["authorization"] = "Bearer secret"
        assert toy.client.get("/v1/models").status_code == 200
        assert toy.complete("ab", max_tokens=1)["usage"]["completion_tokens"] == 1


def test_a_model_without_template_or_tokenizer_says_what_to_do(tmp_path: Path) -> None:
    path = write_toy(tmp_path / "plain.gw", tokenizer=word_tokenizer())
    with served(Engine(path, library=ToyLibrary())) as plain:
        error = error_of(plain.post(CHAT, messages=[USER]), 400)
        assert error["code"] == "no_chat_template"
        assert "without a chat template; use /v1/completions" in error["message"]
    path = write_toy(tmp_path / "broken.gw", tokenizer=word_tokenizer(), chat_template="{% if %}")
    with served(Engine(path, library=ToyLibrary())) as broken:
        message = error_of(broken.post(CHAT, messages=[USER]), 400)["message"]
        assert "template is not usable" in message and "Use /v1/completions" in message
    path = write_toy(tmp_path / "bare.gw")
    with served(Engine(path, library=ToyLibrary())) as bare:
        for path_, body in (
            (TEXT, {"prompt": "a", "return_token_ids": True}),
            (TEXT, {"prompt": [1]}),
            (TEXT, {"prompt": [1], "return_token_ids": True, "stop": "x"}),
            (CHAT, {"messages": [USER]}),
            ("/tokenize", {"prompt": "a"}),
            ("/detokenize", {"tokens": [1]}),
        ):
            assert "no tokenizer" in error_of(bare.post(path_, **body), 400)["message"]
