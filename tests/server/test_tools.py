"""Calls of tools that a request demands: held to the schema of their arguments, and read back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from served_toy import Served, served
from toy_model import ToyLibrary, word_tokenizer, write_toy

from graphwright.runtime.engine import Engine
from graphwright.runtime.server.body import Body
from graphwright.runtime.server.prompts import take_messages
from graphwright.runtime.server.tool_calls import CallsShape, beginning

CHAT = "/v1/chat/completions"
TEMPLATE = (  # earlier calls as <call>{"name": "…", "arguments": {…}}</call>
    "{% for tool in tools or [] %}<{{ tool.function.name }}>{% endfor %}"
    "{% for m in messages %}[{{ m.role[0] }}]{{ m.content }}"
    "{% for call in m.tool_calls or [] %}"
    '<call>{"name": "{{ call.function.name }}", '
    '"arguments": {{ call.function.arguments | tojson }}}</call>'
    "{% endfor %}"
    "{% endfor %}"
)
WEATHER = {
    "type": "object",
    "properties": {"city": {"enum": ["Bonn", "Oslo"]}, "days": {"$ref": "#/$defs/days"}},
    "required": ["city", "days"],
    "additionalProperties": False,
    "$defs": {"days": {"type": "integer", "minimum": 1, "maximum": 9}},
}
TOOLS = [
    {"type": "function", "function": {"name": "get_weather", "description": "For some days.",
                                      "parameters": WEATHER, "strict": True}},
    {"type": "function", "function": {"name": "stop-now"}},
]  # fmt: skip
BODY: dict[str, Any] = {
    "messages": [{"role": "user", "content": "Hi"}], "tools": TOOLS, "temperature": 2.0,
    "seed": 3, "n": 4, "max_tokens": 300,
}  # fmt: skip
NAMED = {"type": "function", "function": {"name": "get_weather"}}


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """With a closing brace instead of the bar, and room for a call."""
    path = tmp_path_factory.mktemp("tools") / "toy.gw"
    tokenizer = word_tokenizer().replace('"|"', '"}"')
    write_toy(path, tokenizer=tokenizer, chat_template=TEMPLATE, max_context=400)
    with served(Engine(path, library=ToyLibrary(), max_sequences=4)) as found:
        yield found


def check(call: dict[str, Any]) -> str:
    """That a call has the parts of the API, and arguments of its schema."""
    assert set(call) == {"id", "type", "function"} and call["type"] == "function"
    assert call["id"].startswith("call_") and len(call["id"]) > 20
    arguments = json.loads(call["function"]["arguments"])
    if call["function"]["name"] == "get_weather":
        assert list(arguments) == ["city", "days"] and arguments["city"] in ("Bonn", "Oslo")
        assert 1 <= arguments["days"] <= 9
    else:
        assert call["function"]["name"] == "stop-now" and arguments == {}
    return str(call["id"])


def test_one_function_that_must_be_called(toy: Served) -> None:
    answer = toy.post(CHAT, **BODY, tool_choice=NAMED)
    assert answer.status_code == 200, answer.text
    texts = set()
    for choice in answer.json()["choices"]:
        (call,) = choice["message"].pop("tool_calls")
        assert choice["message"] == {"role": "assistant", "content": None, "refusal": None}
        assert choice["finish_reason"] == "stop"  # as the API says it where a function is named
        assert call["function"]["name"] == "get_weather"
        check(call)
        texts.add(call["function"]["arguments"])
    assert len(texts) > 1


def test_at_least_one_call(toy: Served) -> None:
    counts = set()
    for several in (True, False):
        ids = []
        body = {**BODY, "tool_choice": "required", "parallel_tool_calls": several}
        for choice in toy.post(CHAT, **body).json()["choices"]:
            calls = choice["message"]["tool_calls"]
            assert choice["message"]["content"] is None
            if choice["finish_reason"] == "length":
                assert several and len(calls) > 1
                calls.pop()  # cut
            else:
                assert choice["finish_reason"] == "tool_calls"
            ids += [check(call) for call in calls]
            counts.add((several, len(calls)))
        assert len(set(ids)) == len(ids)
    assert {count for several, count in counts if not several} == {1}
    assert len({count for several, count in counts if several}) > 1


@pytest.mark.parametrize("choice", ["required", NAMED])
@pytest.mark.parametrize("most", [300, 40])
def test_streamed_calls_are_the_same(toy: Served, choice: Any, most: int) -> None:
    """Also where they are cut."""
    body = {**BODY, "tool_choice": choice, "max_tokens": most}
    whole = toy.post(CHAT, **body).json()["choices"]
    calls: list[dict[int, dict[str, Any]]] = [{} for _ in whole]
    reasons: list[str | None] = [None] * len(whole)
    for chunk in toy.stream(CHAT, **body):
        for part in chunk["choices"]:
            assert not part["delta"].get("content")
            for call in part["delta"].get("tool_calls", []):
                known = calls[part["index"]].setdefault(call["index"], {"arguments": ""})
                known["arguments"] += call["function"]["arguments"]
                known.update({k: v for k, v in call.items() if k in ("id", "type")})
                known["name"] = call["function"].get("name") or known["name"]
            reasons[part["index"]] = part["finish_reason"] or reasons[part["index"]]
    for number, each in enumerate(whole):
        expected = each["message"]["tool_calls"]
        found = [calls[number][index] for index in range(len(expected))]
        assert len(calls[number]) == len(expected) and reasons[number] == each["finish_reason"]
        for one, other in zip(found, expected, strict=True):
            assert one["id"].startswith("call_") and one["type"] == "function"
            assert {k: one[k] for k in ("name", "arguments")} == other["function"]
    if most == 40 and choice == "required":
        assert "length" in reasons


CALL = (
    r'<call>\{"name": "(stop-now", "arguments": \{\}|get_weather", "arguments": \{"x": [0-9]\})\}'
    "</call>"
)


@pytest.mark.parametrize(
    ("pattern", "calls", "content"),
    [
        (f"Well, {CALL}", 1, "Well, "),
        (f"{CALL} and {CALL}", 2, " and "),
        (f"{CALL}{CALL}", 2, None),
        ("<cat>[a-z]{3}<call>", 0, None),
        ('<call>\\{"name": "other", "arguments": \\{\\}\\}</call>', 0, None),
    ],
)
@pytest.mark.parametrize("several", [True, False])
def test_calls_that_the_model_is_free_to_make(
    toy: Served, pattern: str, calls: int, content: str | None, several: bool
) -> None:
    """A regular expression stands for a model that knows its format."""
    body = {**BODY, "guided_regex": pattern, "parallel_tool_calls": several}
    answer = toy.post(CHAT, **body)
    assert answer.status_code == 200, answer.text
    chunks = toy.stream(CHAT, **body)
    for choice in answer.json()["choices"]:
        message = choice["message"]
        parts = [
            part["delta"] for chunk in chunks for part in chunk["choices"]
            if part["index"] == choice["index"]
        ]  # fmt: skip
        text = "".join(part.get("content") or "" for part in parts)
        sent = [call for part in parts for call in part.get("tool_calls", [])]
        last = [c["choices"][0] for c in chunks if c["choices"][0]["index"] == choice["index"]][-1]
        assert last["finish_reason"] == choice["finish_reason"]
        if calls == 0:
            assert "tool_calls" not in message and choice["finish_reason"] == "stop"
            assert text == message["content"] and text.startswith(("<cat>", "<call>")) and not sent
            continue
        assert choice["finish_reason"] == "tool_calls" and message["content"] == content
        assert text == (content or "")
        found = message["tool_calls"]
        assert len(found) == (calls if several else 1)
        assert [call["index"] for call in sent] == list(range(len(found)))
        assert [call["function"] for call in sent] == [call["function"] for call in found]
        for call in found:
            assert call["id"].startswith("call_") and json.loads(call["function"]["arguments"]) in (
                {}, *({"x": digit} for digit in range(10))
            )  # fmt: skip


def test_tools_are_shown_but_not_where_none_may_be_called(toy: Served) -> None:
    def prompt_tokens(**options: Any) -> int:
        body = {**BODY, "n": 1, "max_tokens": 1, **options}
        return int(toy.post(CHAT, **body).json()["usage"]["prompt_tokens"])

    plain = prompt_tokens(tools=None)
    assert prompt_tokens(tool_choice="none") == plain
    assert prompt_tokens(tool_choice="required") == plain + len("<get_weather><stop-now>")
    content = toy.post(CHAT, **{**BODY, "tool_choice": "none", "max_tokens": 3}).json()
    assert "tool_calls" not in content["choices"][0]["message"]


def test_earlier_calls_and_what_they_gave_reach_the_template(toy: Served) -> None:
    call = {"id": "call_1", "type": "function",
            "function": {"name": "get_weather", "arguments": '{"city": "Oslo"}'}}  # fmt: skip
    messages = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "cold"},
    ]
    body = Body({"messages": messages})
    tokenizer, template = toy.engine.tokenizer, toy.engine.artifact
    assert tokenizer is not None and template is not None
    prompt = take_messages(body)
    assert prompt.messages[1]["tool_calls"][0]["function"]["arguments"] == {"city": "Oslo"}
    assert prompt.messages[1]["content"] == "" and prompt.messages[2]["tool_call_id"] == "call_1"
    answer = toy.post("/tokenize", messages=messages)
    text = '[u]Hi[a]<call>{"name": "get_weather", "arguments": {"city": "Oslo"}}</call>[t]cold'
    assert answer.json()["tokens"] == tokenizer.encode(text, special=False)


def test_a_template_that_wants_arguments_as_text_gets_them_so(tmp_path: Path) -> None:
    template = (
        "{% for m in messages %}[{{ m.role[0] }}]{{ m.content }}"
        "{% for c in m.tool_calls or [] %}<{{ c.function.name + '>' + c.function.arguments }};"
        "{% endfor %}{% endfor %}"
    )
    tokenizer = word_tokenizer().replace('"|"', '"}"')
    path = write_toy(tmp_path / "toy.gw", tokenizer=tokenizer, chat_template=template)
    engine = Engine(path, library=ToyLibrary())
    call = {"function": {"name": "f", "arguments": '{"x":"y"}'}}
    messages = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
    ]
    with served(engine) as found:
        answer = found.post("/tokenize", messages=messages)
    assert answer.status_code == 200 and engine.tokenizer is not None
    expected = engine.tokenizer.encode('[u]Hi[a]<f>{"x": "y"};', special=False)
    assert answer.json()["tokens"] == expected


def test_a_list_that_was_cut_has_the_calls_so_far() -> None:
    shape = CallsShape(None, ["f", "f2"])
    first, second = (f'{beginning(name)}{{"a": [1, "}}"]}}' for name in ("f", "f2"))
    full = f"[{first}}}, {second}}}]"
    expected = '{"a": [1, "}"]}'
    found = [call["function"] for call in shape.said(full)["message"]["tool_calls"]]
    assert found == [{"name": name, "arguments": expected} for name in ("f", "f2")]
    for length in range(len(full)):
        cut = [call["function"] for call in shape.said(full[:length])["message"]["tool_calls"]]
        assert [each["name"] for each in cut] == ["f", "f2"][: len(cut)]
        for number, each in enumerate(cut):
            assert expected.startswith(each["arguments"])
            assert each["arguments"] == expected or number == len(cut) - 1
