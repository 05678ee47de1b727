"""/v1/completions and /v1/chat/completions: what they answer, whole and streamed."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from served_toy import Served, served, served_toy
from toy_model import VOCAB, ToyLibrary, toy_greedy, write_toy

from graphwright import SamplingParams
from graphwright.runtime.engine import Engine
from graphwright.runtime.library import StepBuffers
from graphwright.runtime.server.body import Body
from graphwright.runtime.server.prompts import take_messages

GREEDY = {"temperature": 0, "ignore_eos": True, "return_token_ids": True}
SAMPLED = {"temperature": 3.0, "ignore_eos": True, "seed": 5, "max_tokens": 12}


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served_toy(tmp_path_factory.mktemp("toy")) as found:
        yield found


@pytest.fixture(scope="module")
def direct(tmp_path_factory: pytest.TempPathFactory, toy: Served) -> Engine:
    """An engine over the same file, not served."""
    return Engine(toy.engine.artifact, library=ToyLibrary())


def test_concurrent_requests_say_what_each_says_alone(toy: Served) -> None:
    prompts = [[1 + n, 5, *range(2, 2 + n)] for n in range(12)]

    def ask(ids: list[int]) -> list[int]:
        found: list[int] = toy.complete(ids, max_tokens=9, **GREEDY)["choices"][0]["token_ids"]
        return found

    with ThreadPoolExecutor(len(prompts)) as clients:
        found = list(clients.map(ask, prompts))
    assert found == [toy_greedy(ids, 9) for ids in prompts]
    assert toy.is_idle()


def test_a_whole_answer_has_the_parts_that_the_api_defines(toy: Served, direct: Engine) -> None:
    found = toy.complete("Hello", model="toy", max_tokens=6, temperature=0, ignore_eos=True)
    (output,) = direct.generate(["Hello"], SamplingParams(max_tokens=6, ignore_eos=True))
    assert found.pop("id").startswith("cmpl-") and found.pop("created") > 1.7e9
    assert found == {
        "object": "text_completion",
        "model": "toy",
        "choices": [
            {"index": 0, "text": output.text, "logprobs": None, "finish_reason": "length"}
        ],
        "usage": {"prompt_tokens": 6, "completion_tokens": 6, "total_tokens": 12,
                  "prompt_tokens_details": {"cached_tokens": 0}},
    }  # fmt: skip


def test_a_chat_is_rendered_by_the_template_with_one_bos(toy: Served, direct: Engine) -> None:
    messages = [{"role": "system", "content": "S"}, {"role": "user", "content": "Hi"}]
    options: dict[str, Any] = {"temperature": 0, "max_completion_tokens": 5, "ignore_eos": True}
    answer = toy.post("/v1/chat/completions", messages=messages, **options)
    assert answer.status_code == 200
    ids = direct.tokenizer.encode("<s>[s]S[u]Hi[a]", special=False)  # type: ignore[union-attr]
    assert ids.count(0) == 1
    (output,) = direct.generate([ids], SamplingParams(max_tokens=5, ignore_eos=True))
    (choice,) = answer.json()["choices"]
    assert choice["message"] == {"role": "assistant", "content": output.text, "refusal": None}
    assert answer.json()["usage"]["prompt_tokens"] == len(ids)
    assert answer.json()["object"] == "chat.completion"


def test_parts_of_a_message_are_lines() -> None:
    parts = [{"type": "text", "text": text} for text in ("one", "two")]
    body = Body({"messages": [{"role": "user", "content": parts, "name": "me"}]})
    assert take_messages(body).messages == [{"role": "user", "content": "one\ntwo", "name": "me"}]
    body.close()


def test_what_else_a_template_asks_for_reaches_it(toy: Served) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    plain, shouted, open_end = (
        toy.post("/tokenize", messages=messages, **extra).json()["count"]
        for extra in ({}, {"chat_template_kwargs": {"shout": 1}}, {"add_generation_prompt": False})
    )
    assert (shouted, open_end) == (plain + 1, plain - 3)


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_streamed_pieces_join_to_the_whole_answer(toy: Served, path: str) -> None:
    chat = "chat" in path
    source: dict[str, Any] = {"prompt": ["Hello", "you"]}
    if chat:
        source = {"messages": [{"role": "user", "content": "Hello"}]}
    body = {**source, **SAMPLED, "n": 3}
    whole = toy.post(path, **body).json()
    chunks = toy.stream(path, **body, stream_options={"include_usage": True})
    *said, last = chunks
    assert last["choices"] == [] and last["usage"] == whole["usage"]
    assert all(chunk["usage"] is None for chunk in said)
    assert len({chunk["id"] for chunk in chunks}) == 1
    for choice in whole["choices"]:
        mine = [
            each for chunk in said for each in chunk["choices"] if each["index"] == choice["index"]
        ]
        assert [each["finish_reason"] for each in mine[:-1]] == [None] * (len(mine) - 1)
        assert mine[-1]["finish_reason"] == choice["finish_reason"]
        if chat:
            assert mine[0]["delta"] == {"role": "assistant", "content": ""}
            text = "".join(each["delta"].get("content", "") for each in mine)
            assert text == choice["message"]["content"]
        else:
            assert "".join(each["text"] for each in mine) == choice["text"]
    assert len(whole["choices"]) == (3 if chat else 6)
    assert all("usage" not in chunk for chunk in toy.stream(path, **body))


def test_choices_draw_by_seeds_of_their_own(toy: Served, direct: Engine) -> None:
    body = {**SAMPLED, "n": 3, "return_token_ids": True}
    found = [each["token_ids"] for each in toy.complete("Hello", **body)["choices"]]
    expected = [
        direct.generate(
            ["Hello"], SamplingParams(temperature=3, seed=seed, max_tokens=12, ignore_eos=True)
        )[0].token_ids
        for seed in (5, 6, 7)
    ]
    assert found == expected and len(set(map(tuple, found))) == 3
    again = [each["token_ids"] for each in toy.complete("Hello", **body)["choices"]]
    assert again == found
    assert toy.complete("Hello", **body)["usage"]["prompt_tokens"] == 6  # once for all choices


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    temperature=st.sampled_from([0, 0.5, 2.0]), top_k=st.integers(0, VOCAB),
    top_p=st.floats(0.1, 1.0), min_p=st.floats(0.0, 0.5), repetition_penalty=st.floats(0.8, 1.5),
    seed=st.integers(0, 2**64), max_tokens=st.integers(1, 12),
    prompt=st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=20),
)  # fmt: skip
def test_every_sampling_parameter_means_what_it_means_to_the_engine(
    toy: Served, direct: Engine, prompt: list[int], **params: Any
) -> None:
    found = toy.complete(prompt, **params, return_token_ids=True)["choices"][0]
    (expected,) = direct.generate([prompt], SamplingParams(**params))
    assert found["token_ids"] == expected.token_ids
    assert found["text"] == expected.text
    assert found["finish_reason"] == expected.finish_reason


def test_stop_texts_end_a_choice_and_are_not_shown(toy: Served) -> None:
    body = {"max_tokens": 20, "temperature": 0, "ignore_eos": True}
    text = toy.complete("ab", **body)["choices"][0]["text"]
    stop = text[6:9]
    for stops in (stop, [stop], ["never there", stop]):
        (choice,) = toy.complete("ab", **body, stop=stops)["choices"]
        assert choice["text"] == text[: text.index(stop)]
        assert choice["finish_reason"] == "stop"
        chunks = toy.stream("/v1/completions", prompt="ab", **body, stop=stops)
        assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == choice["text"]
    assert toy.is_idle()


def test_an_end_of_text_token_is_a_stop(toy: Served, direct: Engine) -> None:
    seeds = range(200)
    params = [SamplingParams(temperature=5, seed=seed, max_tokens=8) for seed in seeds]
    outputs = direct.generate(["ab"] * len(seeds), params)
    ended = [n for n, each in enumerate(outputs) if each.finish_reason == "stop"]
    assert ended
    found = toy.complete("ab", temperature=5, seed=ended[0], max_tokens=8)
    assert found["choices"][0]["finish_reason"] == "stop"
    assert found["choices"][0]["text"] == outputs[ended[0]].text
    assert found["usage"]["completion_tokens"] == len(outputs[ended[0]].token_ids) < 8


class Script(ToyLibrary):
    """Says these tokens, whatever it is asked."""

    tokens = (40, 95, 96, 41, 95, 41, 95)

    def run(self, entry: str, buffers: StepBuffers, *rest: Any) -> NDArray[np.int32] | None:
        found = super().run(entry, buffers, *rest)
        buffers.logits[0] = 0
        buffers.logits[0, self.tokens[(len(self.steps) - 1) % len(self.tokens)]] = 1
        return found


def test_no_chunk_breaks_a_character(tmp_path: Path) -> None:
    """The toy's tokens 95 and 96 are the two bytes of é, which are not always together here."""
    with served_toy(tmp_path, Script()) as toy:
        body = {"prompt": [2], "max_tokens": 7, **GREEDY}
        chunks = [each["choices"][0] for each in toy.stream("/v1/completions", **body)]
        assert [chunk["text"] for chunk in chunks] == ["F", "", "é", "G", "", "\ufffdG", "\ufffd"]
        assert [chunk["token_ids"] for chunk in chunks] == [[each] for each in Script.tokens]
        body = {**body, "return_token_ids": False}
        texts = [each["choices"][0]["text"] for each in toy.stream("/v1/completions", **body)]
        assert texts == ["F", "é", "G", "\ufffdG", "\ufffd"]
        assert toy.complete(**body)["choices"][0]["text"] == "FéG\ufffdG\ufffd"


def test_defaults_of_max_tokens(toy: Served, tmp_path_factory: pytest.TempPathFactory) -> None:
    body = {"temperature": 0, "ignore_eos": True}
    messages = [{"role": "user", "content": "Hi"}]
    assert toy.complete("ab", **body)["usage"]["completion_tokens"] == 16
    answer = toy.post("/v1/chat/completions", messages=messages, **body).json()
    assert answer["usage"]["total_tokens"] == toy.engine.context  # all that there is room for
    path = write_toy(
        tmp_path_factory.mktemp("own") / "own.gw", generation_config={"max_new_tokens": 7}
    )
    with served(Engine(path, library=ToyLibrary())) as own:
        found = own.complete([1, 2], **body, return_token_ids=True)
        assert found["usage"]["completion_tokens"] == 7
        assert found["choices"][0]["token_ids"] == toy_greedy([1, 2], 7)
        assert found["choices"][0]["text"] == ""  # there is no tokenizer


def test_parameters_that_change_nothing_are_taken(toy: Served) -> None:
    plain = toy.complete("ab", temperature=0)["choices"]
    extra: dict[str, Any] = {
        "user": "me", "metadata": {"a": 1}, "store": True, "service_tier": "auto", "tools": None,
        "frequency_penalty": 0, "presence_penalty": 0.0, "logit_bias": {}, "logprobs": None,
        "response_format": {"type": "text"}, "best_of": 1, "echo": False, "suffix": None,
        "tool_choice": "none", "stop": None, "seed": None, "n": 1, "stream": False,
    }  # fmt: skip
    assert toy.complete("ab", temperature=0, **extra)["choices"] == plain
