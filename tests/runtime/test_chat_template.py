"""Conversations rendered by templates: the text, and the ids, that transformers makes of them."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shared_data import shared_path
from toy_model import word_tokenizer, write_toy
from transformers import PreTrainedTokenizerFast

from graphwright.runtime.artifact import Artifact, ArtifactWriter
from graphwright.runtime.chat_template import ChatTemplate, read_chat_template
from graphwright.runtime.errors import ArtifactError, RequestError
from graphwright.runtime.tokenizer import Tokenizer
from graphwright.runtime.variants import Variant

TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
# One for each way in which templates are written; loops, trims, refusals, tools, dates, marks.
TEMPLATES = {
    "marked turns": """{% for m in messages %}
        {%- if loop.first and m['role'] != 'system' %}{{ '<|begin|>system\nBe kind.<|end|>\n' }}
        {%- endif %}
{{- '<|begin|>' + m['role'] + '\n' + m['content'] + '<|end|>' + '\n' }}
{%- endfor %}
{% if add_generation_prompt %}{{ '<|begin|>assistant\n' }}{% endif %}""",
    "alternating": """{{ bos_token }}
{% if messages[0].role == 'system' %}
    {% set system = messages[0].content | trim %}{% set messages = messages[1:] %}
{% else %}
    {% set system = none %}
{% endif %}
{% for m in messages %}
    {% if (m.role == 'user') != (loop.index0 % 2 == 0) %}
        {{ raise_exception('Roles must alternate user/assistant/user/assistant/...') }}
    {% endif %}
    {% if m.role == 'user' %}
[INST] {% if loop.first and system is not none %}<<SYS>>{{ system }}<</SYS>>{% endif -%}
    {{ m.content }} [/INST]
    {% else %}
 {{ m.content | trim }}{{ eos_token }}
    {% endif %}
{% endfor %}""",
    "blocks and json": """{% set ns = namespace(turns=0, last='') %}
{%- for m in messages recursive %}
  {%- if m.role == 'system' %}{% continue %}{% endif %}
  {%- set ns.turns = ns.turns + 1 %}
  {%- generation %}{{ {'role': m.role, 'é<b>': m.content} | tojson }}{% endgeneration %}
  {%- set ns.last = m.role %}
{%- endfor %}
{{ ns.turns }} {{ ns.last }} {{ dict(a=1) | tojson(indent=2) }} {{ tools is none }} {{ pad_token }}
{%- macro say(text) %}<{{ text | upper }}>{% endmacro %}{{ say('x') }}""",
    "dates and reasoning": """{{ strftime_now('%Y') }}
{%- for m in messages -%}
  {%- if m.reasoning_content is defined and m.reasoning_content -%}
    <think>{{ m.reasoning_content }}|{{ m.thinking }}</think>
  {%- endif -%}
  {{ m['content'].split('</think>')[-1].lstrip('\n') }}
  {%- if not loop.last %}{% break %}{% endif -%}
{%- endfor -%}{{ '' if enable_thinking is not defined else enable_thinking }}""",
}
CONVERSATIONS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "Hi <b>&amp; 'é' \"\\"}],
    [
        {"role": "system", "content": " Be brief. "},
        {"role": "user", "content": " a\n"},
        {"role": "assistant", "content": "b", "reasoning_content": "hm"},
        {"role": "user", "content": "</think>\n\nc"},
    ],
    [{"role": "user", "content": "a"}, {"role": "assistant", "content": "<think>x</think>b"}],
    [{"role": "assistant", "content": "a"}, {"role": "assistant", "content": "b"}],
]


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A tokenizer of transformers."""
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    path.write_text(word_tokenizer())
    return PreTrainedTokenizerFast(tokenizer_file=str(path), **TOKENS)


@cache
def compiled(source: str) -> ChatTemplate:
    """A template, compiled once."""
    return ChatTemplate(source, TOKENS)


def both(
    theirs: Any, source: str, messages: list[dict[str, Any]], **options: Any
) -> tuple[str | None, str | None]:
    """The text by transformers and by us; None: the conversation is refused."""
    generation_prompt = options.pop("add_generation_prompt", True)
    try:
        expected = theirs.apply_chat_template(
            messages, chat_template=source, tokenize=False,
            add_generation_prompt=generation_prompt, **options,
        )  # fmt: skip
    except Exception:  # noqa: BLE001  templates raise what they like
        expected = None
    try:
        found = compiled(source).render(
            messages, add_generation_prompt=generation_prompt, variables=options
        )
    except RequestError:
        found = None
    return expected, found


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_text_is_that_of_transformers(theirs: Any, name: str) -> None:
    texts = set()
    for messages in CONVERSATIONS:
        for generation_prompt in (True, False):
            expected, found = both(
                theirs, TEMPLATES[name], messages, add_generation_prompt=generation_prompt
            )
            assert found == expected
            texts.add(found)
        assert both(theirs, TEMPLATES[name], messages, enable_thinking=False)[0] == both(
            theirs, TEMPLATES[name], messages, enable_thinking=False
        )[1]  # fmt: skip
    assert len(texts) >= 3


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(list(TEMPLATES)),
    messages=st.lists(
        st.fixed_dictionaries(
            {"role": st.sampled_from(["system", "user", "assistant"]), "content": st.text()}
        ),
        min_size=1,
        max_size=4,
    ),
)
def test_any_conversation(theirs: Any, name: str, messages: list[dict[str, Any]]) -> None:
    expected, found = both(theirs, TEMPLATES[name], messages)
    assert found == expected


def test_tools_are_shown_as_transformers_shows_them(theirs: Any) -> None:
    source = """{% if tools %}{% for tool in tools %}{{ tool | tojson(indent=1) }}
{% endfor %}{% else %}none{% endif %}{% for m in messages %}{{ m.role }}:{{ m.content }}
{%- for call in m.tool_calls or [] %}{{ call.function | tojson }}{% endfor %}{% endfor %}"""
    parameters = {"type": "object", "properties": {"é": {"type": "string"}}, "required": ["é"]}
    function = {"name": "f", "description": "<b>", "parameters": parameters}
    tools = [{"type": "function", "function": function}]
    call = {"type": "function", "function": {"name": "f", "arguments": {"é": "a"}}}
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "b", "name": "f"},
    ]
    for shown in (tools, None):
        expected = theirs.apply_chat_template(
            messages, chat_template=source, tokenize=False, tools=shown
        )
        found = compiled(source).render(messages, add_generation_prompt=False, tools=shown)
        assert found == expected and ("none" in found) == (shown is None)


@pytest.mark.shared
def test_real_templates(theirs: Any) -> None:
    compared = 0
    for path in sorted(shared_path("data/chat_templates").glob("*.jinja")):
        source = path.read_text()
        for messages in CONVERSATIONS:
            for generation_prompt in (True, False):
                expected, found = both(
                    theirs, source, messages, add_generation_prompt=generation_prompt
                )
                assert found == expected, path.name
                compared += found is not None
    assert compared > 0


def test_the_ids_have_no_second_bos(theirs: Any) -> None:
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "you"}]
    source = TEMPLATES["alternating"]
    ours = Tokenizer(word_tokenizer().encode(), {"bos_token": "<s>"})
    ids = ours.encode(ChatTemplate(source, TOKENS).render(messages), special=False)
    expected = theirs.apply_chat_template(messages, chat_template=source, tokenize=True)
    assert ids == expected["input_ids"] and ids.count(0) == 1 and ids[-1] == 1


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{{ raise_exception.__globals__['os'] }}", "unsafe"),
        ("{{ strftime_now.__code__.co_consts }}", "unsafe"),
        ("{% set ns = namespace() %}{% set ns.__class__ = 1 %}", "__class__"),
        ("{{ range(10 ** 9) }}", "Range too big"),
        ("{{ messages + 1 }}", "fails on this conversation"),
        ("{{ messages[0].content.nothing.more }}", "has no attribute"),
        ("{{ raise_exception('No.') }}", "refuses this conversation: No."),
    ],
)
def test_what_a_template_may_not_do(source: str, words: str) -> None:
    with pytest.raises(RequestError, match="chat template") as caught:
        ChatTemplate(source, TOKENS).render([{"role": "user", "content": "Hi"}])
    assert words in str(caught.value)


def test_variables_cannot_replace_the_conversation() -> None:
    template = ChatTemplate("{{ messages }}{{ mood }}{{ bos_token }}", TOKENS)
    with pytest.raises(RequestError, match="'messages' of the chat template cannot be given"):
        template.render([], variables={"messages": []})
    assert template.render([], variables={"mood": "good", "bos_token": "!"}) == "[]good!"


def test_where_an_artifact_keeps_its_template(tmp_path: Path) -> None:
    def write(name: str, files: dict[str, Any]) -> Artifact:
        with ArtifactWriter(tmp_path / name, variants=[Variant("toy", ())]) as writer:
            for entry, content in files.items():
                text = content if isinstance(content, str) else json.dumps(content)
                writer.add(entry, text)
        return Artifact.open(tmp_path / name)

    config = {"bos_token": {"content": "<s>"}, "eos_token": "</s>", "pad_token": None}
    source = "{{ bos_token }}{{ eos_token }}{{ pad_token is defined }}"
    named = [{"name": "tools", "template": "?"}, {"name": "default", "template": source}]
    places: list[dict[str, Any]] = [
        {"chat_template.jinja": source, "tokenizer_config.json": {**config, "chat_template": "?"}},
        {"tokenizer_config.json": {**config, "chat_template": source}},
        {"tokenizer_config.json": {**config, "chat_template": named}},
    ]
    for number, files in enumerate(places):
        template = read_chat_template(write(f"{number}.gw", files))
        assert template is not None and template.render([]) == "<s></s>False"
    assert read_chat_template(write("none.gw", {"tokenizer_config.json": config})) is None
    assert read_chat_template(Artifact.open(write_toy(tmp_path / "toy.gw"))) is None
    with pytest.raises(ArtifactError, match="template is not usable: Expected an expr"):
        read_chat_template(write("bad.gw", {"chat_template.jinja": "{% for %}"}))
