"""A conversation remembers what was said, and nothing of what was not."""

from __future__ import annotations

from pathlib import Path

import pytest
from served_toy import chat_toy
from toy_model import ToyLibrary, toy_greedy, word_tokenizer, write_toy

from graphwright import SamplingParams
from graphwright.runtime.chat_template import read_chat_template
from graphwright.runtime.conversation import Conversation
from graphwright.runtime.engine import Engine
from graphwright.runtime.errors import RequestError


def make(path: Path, max_tokens: int | None = 6, system: str | None = None) -> Conversation:
    engine = Engine(path, library=ToyLibrary(), max_sequences=1)
    template = read_chat_template(engine.artifact)
    assert template is not None
    params = SamplingParams(max_tokens=max_tokens, ignore_eos=True)
    return Conversation(engine, template, params, system)


@pytest.fixture
def conversation(tmp_path: Path) -> Conversation:
    return make(chat_toy(tmp_path / "toy.gw"), system="S")


def expected(conversation: Conversation, rendered: str, count: int) -> str:
    engine = conversation._engine
    assert engine.tokenizer is not None
    ids = engine.tokenizer.encode(rendered, special=False)
    return engine.tokenizer.decode(toy_greedy(ids, count))


def test_each_answer_follows_from_all_turns(conversation: Conversation) -> None:
    first = "".join(conversation.say("Hi"))
    assert first == expected(conversation, "<s>[s]S[u]Hi[a]", 6)
    second = "".join(conversation.say("and"))
    assert second == expected(conversation, f"<s>[s]S[u]Hi[a]{first}[u]and[a]", 6)
    assert [(each["role"], each["content"]) for each in conversation.messages] == [
        ("system", "S"), ("user", "Hi"), ("assistant", first), ("user", "and"),
        ("assistant", second),
    ]  # fmt: skip
    assert conversation.finish_reason == "length"
    conversation.reset()
    assert "".join(conversation.say("Hi")) == first


def test_a_stopped_answer_stays_as_far_as_it_came(conversation: Conversation) -> None:
    engine = conversation._engine
    said: list[str] = []
    for piece in conversation.say("Hi", lambda: len(said) >= 2):
        said.append(piece)
    assert len(said) == 2 and conversation.finish_reason is None
    assert conversation.messages[-1] == {"role": "assistant", "content": "".join(said)}
    assert engine._scheduler.running == 0
    before = conversation.messages
    assert list(conversation.say("again", lambda: True)) == []
    assert conversation.messages == before and engine._scheduler.running == 0


def test_what_does_not_fit_is_said_and_forgotten(conversation: Conversation) -> None:
    first = "".join(conversation.say("Hi"))
    with pytest.raises(RequestError, match="but the context holds 64"):
        list(conversation.say("x" * 60))
    assert [each["content"] for each in conversation.messages] == ["S", "Hi", first]
    assert len("".join(conversation.say("ok"))) > 0


def test_how_long_an_answer_may_be(tmp_path: Path) -> None:
    free = make(chat_toy(tmp_path / "free.gw"), None)
    tokens = len("".join(free.say("Hi")))
    assert tokens > 40 and free.finish_reason == "length"  # all that the context of 64 holds
    path = chat_toy(tmp_path / "own.gw", generation_config={"max_new_tokens": 5})
    own = make(path, None)
    assert "".join(own.say("Hi")) == expected(own, "<s>[u]Hi[a]", 5)


def test_without_a_tokenizer(tmp_path: Path) -> None:
    path = write_toy(tmp_path / "bare.gw", chat_template="{{ messages }}")
    with pytest.raises(RequestError, match="has no tokenizer"):
        make(path)
    assert word_tokenizer()
