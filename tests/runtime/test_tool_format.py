"""The format of calls, out of templates that write them in several ways, and reading them back."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphwright.runtime.chat_template import ChatTemplate
from graphwright.runtime.tool_format import ToolFormat, find_tool_format

HEAD = """{% for t in tools or [] %}{{ t | tojson }}{% endfor %}{% for m in messages %}
{{- '<|' + m.role + '|>' }}{{ m.content }}"""
TAIL = "{{ '<|end|>' }}{% endfor %}"
TEMPLATES = {
    "tags": HEAD + """{% for c in m.tool_calls or [] %}
<tool_call>
{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}
</tool_call>{% endfor %}""" + TAIL,
    "bare": HEAD + """{% if m.tool_calls %}{% if m.tool_calls | length > 1 %}
{{ raise_exception('One call at a time.') }}{% endif %}{% set c = m.tool_calls[0].function -%}
{"name": "{{ c.name }}", "parameters": {{ c.arguments | tojson }}}{% endif %}""" + TAIL,
    "a list with ids": HEAD + """{% if m.tool_calls %}[CALLS][{% for c in m.tool_calls %}
{{- '' if c.id | length == 9 else raise_exception('An id has nine letters.') }}
{{- {'name': c.function.name, 'arguments': c.function.arguments, 'id': c.id} | tojson }}
{{- ', ' if not loop.last }}{% endfor %}]{% endif %}""" + TAIL,
    "arguments as text": HEAD + """{% for c in m.tool_calls or [] %}
{{- '<|call|>function<|sep|>' + c.function.name + '\n' + c.function.arguments + '<|done|>' }}
{%- endfor %}""" + TAIL,
    "fences": HEAD + """{% for c in m.tool_calls or [] %}call: {{ c.function.name }}
```json
{{ c.function.arguments | tojson }}
```
{% endfor %}""" + TAIL,
}  # fmt: skip
NAMES = ["get_weather", "stop-now"]


def without_marks(text: str) -> str:
    """As if [CALLS] were a special token."""
    return text.replace("[CALLS]", "")


def format_of(name: str) -> ToolFormat:
    found = find_tool_format(ChatTemplate(TEMPLATES[name], {}), without_marks)
    assert found is not None, name
    return found


def written(name: str, calls: list[tuple[str, dict[str, Any]]]) -> str:
    """What a model says that writes as its template does, with ids of its own."""
    made = []
    for n, (one, arguments) in enumerate(calls):
        given = json.dumps(arguments) if name == "arguments as text" else arguments
        function = {"name": one, "arguments": given}
        made.append({"id": f"abc-{n:05}", "type": "function", "function": function})
    messages = [{"role": "assistant", "content": "", "tool_calls": made}]
    text = ChatTemplate(TEMPLATES[name], {}).render(messages, add_generation_prompt=False)
    return without_marks(text.removeprefix("<|assistant|>").removesuffix("<|end|>"))


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("count", [1, 2, 3])
def test_calls_that_templates_write_are_read_back(name: str, count: int) -> None:
    arguments: list[dict[str, Any]] = [{"city": 'a "b} {', "é": [1, {"x": None}]}, {}, {"n": 1.5}]
    calls = [(NAMES[n % 2], arguments[n]) for n in range(count)]
    if name == "bare":
        text = "; ".join(written(name, [each]) for each in calls)
    else:
        text = written(name, calls)
    form = format_of(name)
    assert form.as_text == (name == "arguments as text")
    content, found = form.read(text, NAMES)
    assert [(one, json.loads(written)) for one, written in found] == calls
    assert content.strip("; \n") == ""


@pytest.mark.parametrize("name", TEMPLATES)
def test_text_around_calls_stays(name: str) -> None:
    call = written(name, [("stop-now", {"a": 1})])
    content, found = format_of(name).read(f"Let me see. {call}\nDone {{", NAMES)
    assert [one for one, _ in found] == ["stop-now"]
    assert content.split() == ["Let", "me", "see.", "Done", "{"]


@pytest.mark.parametrize("name", TEMPLATES)
def test_what_only_looks_like_a_call_stays_text(name: str) -> None:
    form = format_of(name)
    call = written(name, [("stop-now", {"a": [1, 2]})])
    arguments_end = call.index("[1, 2]}") + len("[1, 2]}")
    for text in (
        written(name, [("unheard_of", {})]), "{", "call: stop-now", '{"name": "stop-now"}',
        *(call[:length] for length in range(arguments_end)),
    ):  # fmt: skip
        assert form.read(text, NAMES) == (text, [])


def test_white_space_may_be_other_than_the_templates() -> None:
    text = '<tool_call>{ "name":"stop-now","arguments" :{}\n}</tool_call>'
    assert format_of("tags").read(text, NAMES) == ("", [("stop-now", "{}")])


@pytest.mark.parametrize("name", TEMPLATES)
@settings(deadline=None, max_examples=30)
@given(st.text(st.sampled_from('<tool_call> {"name:\n`js[x'), max_size=30), st.booleans())
def test_what_was_visible_is_never_a_part_of_a_call(name: str, text: str, with_call: bool) -> None:
    form = format_of(name)
    call = written(name, [("stop-now", {"a": 1})]) if with_call else ""
    whole = text + call
    content, found = form.read(whole, NAMES)
    shown = 0
    for length in range(len(whole) + 1):
        shown = max(shown, form.visible(whole[:length]))
        assert shown <= length
    if found:
        rest, again = form.read(whole[shown:], NAMES)
        assert again == found and whole[:shown] + rest == content
    if "{" not in whole and "<" not in whole and "c" not in whole and "[" not in whole:
        assert shown == len(whole.rstrip()), "nothing is held back without a reason"


@pytest.mark.parametrize(
    "source",
    [
        HEAD + TAIL,
        HEAD + "{% for c in m.tool_calls or [] %}<f={{ c.function.name }}>{% for k, v in "
        "c.function.arguments.items() %}<{{ k }}>{{ v }}</{{ k }}>{% endfor %}{% endfor %}" + TAIL,
        HEAD + "{% for c in m.tool_calls or [] %}{{ c.function.name + c.function.arguments }}"
        "{% endfor %}" + TAIL,
        HEAD + "{% if m.tool_calls %}{{ raise_exception('No.') }}{% endif %}" + TAIL,
        "{{ messages[0].content }}",
        "nothing at all",
    ],
)
def test_templates_without_a_format(source: str) -> None:
    assert find_tool_format(ChatTemplate(source, {}), without_marks) is None
