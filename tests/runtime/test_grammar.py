"""Answers by a grammar: whatever the model prefers, what it says is a word of the grammar."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shared_data import shared_path
from toy_model import ToyLibrary, toy_engine, toy_greedy, word_tokenizer, write_toy

from graphwright.runtime.draws import LARGEST
from graphwright.runtime.engine import Engine
from graphwright.runtime.errors import RequestError
from graphwright.runtime.grammar import Grammar
from graphwright.runtime.grammar_matcher import GrammarMatcher, Grammars
from graphwright.runtime.logit_changes import LogitChanges
from graphwright.runtime.sampler import Sampler
from graphwright.runtime.sampling_params import SamplingParams
from graphwright.runtime.tokenizer import Tokenizer

DEMO = Path(__file__).parents[2] / "examples" / "demo-model" / "tokenizer.json"
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 9},
        "ages": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 120},
                 "minItems": 1, "maxItems": 3},
        "kind": {"enum": ["é", "日本", 1.5, None]},
    },
    "required": ["name", "ages", "kind"],
    "additionalProperties": False,
}  # fmt: skip


def keeps_to_schema(text: str) -> bool:
    found = json.loads(text)
    return (
        list(found) == ["name", "ages", "kind"]
        and len(found["name"]) <= 9
        and 1 <= len(found["ages"]) <= 3
        and all(type(age) is int and 0 <= age <= 120 for age in found["ages"])
        and found["kind"] in ("é", "日本", 1.5, None)
    )


def is_object(text: str) -> bool:
    return isinstance(json.loads(text), dict)


LANGUAGES = {
    "schema": (Grammar.json_schema(SCHEMA), keeps_to_schema),
    "object": (Grammar.json_object(), is_object),
    "regex": (
        Grammar.regex(r"(naïve|[A-Z][a-z]{2,5}) \d{1,3}(, 日本)*!"),
        lambda text: re.fullmatch(r"(naïve|[A-Z][a-z]{2,5}) \d{1,3}(, 日本)*!", text) is not None,
    ),
    "choice": (
        Grammar.choice(["red", "red wine", 'a "b"\\\n', "👩‍👩‍👧"]),
        lambda text: text in ("red", "red wine", 'a "b"\\\n', "👩‍👩‍👧"),
    ),
    "lark": (
        Grammar.context_free('start: "(" start? ")" /[ab]?/'),
        lambda text: text.count("(") == text.count(")") > 0,
    ),
    "gbnf": (
        Grammar.context_free('root ::= "x" | "y" root "z"'),
        lambda text: re.fullmatch("y*xz*", text) is not None,
    ),
}
TOKENIZERS = {
    "demo": "demo",
    "stories260K": "models/stories260K-hf/tokenizer.json",
    "byte-level": "data/tokenizers/codegen_phi2_tokenizer.json",
    "byte-fallback": "data/tokenizers/phi3_llama_spm_tokenizer.json",
}


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, tuple[Tokenizer, Grammars]]:
    return {}


def tokenizer_of(
    name: str, made: dict[str, tuple[Tokenizer, Grammars]]
) -> tuple[Tokenizer, Grammars]:
    """A tokenizer of the vocabulary of a model that has five ids more, and two end-of-text ids."""
    if name not in made:
        path = DEMO if name == "demo" else shared_path(TOKENIZERS[name])
        tokenizer = Tokenizer(path.read_bytes(), {"eos_token": "</s>"})
        ends = [tokenizer.eos_id or tokenizer.size - 1, tokenizer.size - 2]
        made[name] = tokenizer, Grammars(tokenizer, tokenizer.size + 5, ends)
    return made[name]


def say(
    tokenizer: Tokenizer, matcher: GrammarMatcher, seed: int, closing: float
) -> tuple[str, bool]:
    """What a model of random logits, who likes to close things, says in 400 tokens, by bytes."""
    params = SamplingParams(temperature=1.0, seed=seed).resolve({})
    vocab = tokenizer.size + 5
    sampler = Sampler(params, vocab, [], LogitChanges(params, vocab, matcher))
    likes = np.zeros(vocab, np.float32)
    for token in range(tokenizer.size):
        if set(tokenizer.token_bytes(token)) & set(b'"}]!,'):
            likes[token] = closing
    random = np.random.default_rng(seed)
    said: list[int] = []
    while len(said) < 400:
        logits = random.standard_normal(vocab).astype(np.float32) * 2 + likes
        token = sampler.choose(logits)
        if token in matcher.ends:
            return b"".join(map(tokenizer.token_bytes, said)).decode(), True
        said.append(token)
        if matcher.complete:
            return b"".join(map(tokenizer.token_bytes, said)).decode(), True
    return b"".join(map(tokenizer.token_bytes, said)).decode(errors="replace"), False


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("name", TOKENIZERS)
def test_what_is_said_is_a_word_of_the_grammar(
    name: str, language: str, tokenizers: dict[str, tuple[Tokenizer, Grammars]]
) -> None:
    tokenizer, grammars = tokenizer_of(name, tokenizers)
    grammar, good = LANGUAGES[language]
    ended = set()
    for seed in range(6):
        text, complete = say(tokenizer, grammars.matcher(grammar), seed, closing=8)
        if complete:
            ended.add(text)
            assert good(text), text
    assert len(ended) > 1, "a model that likes to close things comes to an end"


@settings(deadline=None, max_examples=25)
@given(
    st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=8), min_size=1, max_size=5)
)
def test_any_texts_can_be_a_choice(texts: list[str]) -> None:
    tokenizer = Tokenizer(DEMO.read_bytes(), {"eos_token": "</s>"})
    grammars = Grammars(tokenizer, tokenizer.size, [1])
    text, complete = say_greedily(tokenizer, grammars.matcher(Grammar.choice(texts)))
    assert complete and text in texts


@pytest.mark.parametrize(
    ("text", "fits"),
    [
        ('{"a": [1, {"b": null}]}', True),
        ('{"a":[1,{"b":null}]}', True),
        ('{\n    "a" : [\r\n\t1\n]\n}', True),
        ("{" + "\n" + " " * 20 + "}", True),
        ("{" + "\n" + " " * 21, False),
        ("{  ", False),
        ("{\n\n", False),
        (" {", False),
        ('{"a": 1}', True),
    ],
)
def test_white_space_in_json_is_bounded(text: str, fits: bool) -> None:
    """Byte by byte: the tokens of the toy, with another character for the one it lacks."""
    definition = word_tokenizer(bos=False).replace('"|"', '"}"').replace('"!"', '"Ċ"')
    definition = definition.replace('"#"', '"ĉ"').replace('"$"', '"č"')
    tokenizer = Tokenizer(definition.encode(), {"eos_token": "</s>"})
    matcher = Grammars(tokenizer, 97, [1]).matcher(Grammar.json_object())
    allowed = True
    for token in tokenizer.encode(text, special=False):
        allowed = allowed and bool(matcher.allowed()[token])
        if allowed:
            matcher.accept(token)
    assert (allowed, matcher.complete) == (fits, fits)


def say_greedily(tokenizer: Tokenizer, matcher: GrammarMatcher) -> tuple[str, bool]:
    """Always the last id that is allowed; the end of the text comes last of all."""
    said: list[int] = []
    while len(said) < 100:
        token = int(np.flatnonzero(matcher.allowed())[-1])
        if token == 1:
            return b"".join(map(tokenizer.token_bytes, said)).decode(), True
        matcher.accept(token)
        said.append(token)
        if matcher.complete:
            return b"".join(map(tokenizer.token_bytes, said)).decode(), True
    return "", False


@pytest.mark.parametrize("name", TOKENIZERS)
def test_bytes_are_those_of_the_library(
    name: str, tokenizers: dict[str, tuple[Tokenizer, Grammars]]
) -> None:
    """Two that read tokenizer.json agree about every token. (0xFF, which is in no text, marks
    special tokens in the library.)"""
    tokenizer, grammars = tokenizer_of(name, tokenizers)
    library = grammars._read_tokenizer()
    differ = [
        token
        for token in range(tokenizer.size)
        if tokenizer.token_bytes(token) not in (library.decode_bytes([token]), b"\xff")
    ]
    assert differ == []


# Over the toy model, whose ids are </s> = 1, "Ġ" = 2, and "!" = 3 to "|" = 94; there is no "}".


@pytest.fixture
def toy(tmp_path: Path) -> Engine:
    path = write_toy(tmp_path / "toy.gw", tokenizer=word_tokenizer())
    return Engine(path, library=ToyLibrary())


def by(pattern: str, **options: Any) -> SamplingParams:
    return SamplingParams(grammar=Grammar.regex(pattern), **{"temperature": 0, **options})


def test_the_end_of_a_grammar_ends_the_request(toy: Engine) -> None:
    for params, pattern in (
        (by("[a-c]{3}"), "[a-c]{3}"),
        (by("[a-c]{2}é[^a]{2}", temperature=2, seed=3), "[a-c]{2}é[^a]{2}"),
        (by("ab|abc?d?", temperature=3, seed=1), "ab|abc?d?"),
        (by("x" * 9, max_tokens=9), "x" * 9),
    ):
        (output,) = toy.generate(["Hello"], params)
        assert re.fullmatch(pattern, output.text), output
        assert output.finish_reason == "stop"
        pieces = list(toy.stream("Hello", params))
        assert "".join(piece.text for piece in pieces) == output.text
        assert pieces[-1].finish_reason == "stop"
    (cut,) = toy.generate(["Hello"], by("x" * 9, max_tokens=8))
    assert (cut.text, cut.finish_reason) == ("x" * 8, "length")
    (stopped,) = toy.generate(["Hello"], by("x{3}y{3}", stop="y"))
    assert (stopped.text, stopped.finish_reason) == ("xxx", "stop")


def test_the_end_of_text_is_allowed_where_the_text_may_end(toy: Engine) -> None:
    """And not at all with ignore_eos, as long as something else can follow."""
    likes_the_end = {"logit_bias": {1: 100}}
    (output,) = toy.generate(["Hello"], by("a{2,5}", **likes_the_end))
    assert (output.text, output.token_ids[-1], output.finish_reason) == ("aa", 1, "stop")
    (longer,) = toy.generate(["Hello"], by("a{2,5}", ignore_eos=True, **likes_the_end))
    assert (longer.text, longer.finish_reason) == ("aaaaa", "stop")
    (empty,) = toy.generate(["Hello"], by("a*", **likes_the_end))
    assert (empty.text, empty.token_ids) == ("", [1])


def test_a_model_without_an_end_of_text_ends_with_the_grammar(tmp_path: Path) -> None:
    """No other token is taken for one, and one whose name counts as text does not show."""
    definition = json.loads(word_tokenizer())
    for each in definition["added_tokens"]:
        each["special"] = False
    path = write_toy(tmp_path / "named.gw", tokenizer=json.dumps(definition))
    engine = Engine(path, library=ToyLibrary())
    (named,) = engine.generate(["Hi"], by("a{2,5}", logit_bias={1: 100}))
    assert (named.text, named.token_ids[-1], named.finish_reason) == ("aa", 1, "stop")
    definition["added_tokens"], definition["post_processor"] = [], None
    del definition["model"]["vocab"]["</s>"]
    definition["model"]["vocab"]["~"] = 1
    config: dict[str, Any] = {"eos_token_id": []}
    path = write_toy(
        tmp_path / "endless.gw", tokenizer=json.dumps(definition), generation_config=config
    )
    engine = Engine(path, library=ToyLibrary())
    assert engine.eos_ids == frozenset()
    for pattern in ("a{2,5}", "[ab]{3}", "x|xyz?"):
        for seed in range(5):
            (output,) = engine.generate(["Hi"], by(pattern, temperature=3, seed=seed))
            assert re.fullmatch(pattern, output.text) and output.finish_reason == "stop"


def test_requests_beside_one_with_a_grammar_say_what_they_say_alone(tmp_path: Path) -> None:
    path = write_toy(tmp_path / "toy.gw", tokenizer=word_tokenizer())
    library = ToyLibrary("any")
    engine = Engine(path, library=library)
    plain = SamplingParams(temperature=0, max_tokens=9, ignore_eos=True)
    outputs = engine.generate(
        [[1, 2], [3], [4, 5]], [plain, by("[a-m]{4}"), by("[n-z]{6}", temperature=1, seed=2)]
    )
    assert outputs[0].token_ids == toy_greedy([1, 2], 9)
    assert re.fullmatch("[a-m]{4}", outputs[1].text) and re.fullmatch("[n-z]{6}", outputs[2].text)
    assert library.asked[0] == ((LARGEST,) * 3, True)
    assert library.asked[-1] == ((LARGEST,), False)


def test_where_no_token_fits_the_request_fails_alone(toy: Engine) -> None:
    """The toy has no token for a closing brace: better no answer than one that does not parse."""
    failed = toy.submit("Hello", by(r"ab\}"))
    other = toy.submit([1, 2], SamplingParams(temperature=0, max_tokens=9, ignore_eos=True))
    with pytest.raises(RequestError, match="no token of this model goes on with a text of it"):
        while not failed.finished:
            toy.step()
    assert failed.error is not None and not other.finished
    while not other.finished:
        toy.step()
    assert other.output().token_ids == toy_greedy([1, 2], 9)


def test_tokens_that_the_model_excludes_are_not_chosen_either() -> None:
    tokenizer = Tokenizer(word_tokenizer().encode(), {"eos_token": "</s>"})
    params = by("[ab]").resolve({})
    matcher = Grammars(tokenizer, 97, [1]).matcher(Grammar.regex("[ab]"))
    sampler = Sampler(params, 97, [], LogitChanges(params, 97, matcher))
    logits = np.zeros(97, np.float32)
    logits[[67, 68]] = -np.inf  # "a" and "b"
    with pytest.raises(RequestError, match="excludes every token that the grammar allows"):
        sampler.choose(logits)
    logits[68] = -50
    assert sampler.choose(logits) == 68 and matcher.complete


def test_there_must_be_a_tokenizer(tmp_path: Path) -> None:
    engine, _ = toy_engine(tmp_path)
    with pytest.raises(RequestError, match="no tokenizer: no grammar can be kept to"):
        engine.generate([[1]], by("a"))


def test_what_to_install_is_said(toy: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(RequestError, match=r"pip install 'graphwright\[structured\]'"):
        toy.generate(["Hello"], by("a"))
    (output,) = toy.generate([[1, 2]], SamplingParams(temperature=0, max_tokens=2))
    assert output.token_ids == toy_greedy([1, 2], 2)


@pytest.mark.parametrize(
    ("grammar", "words"),
    [
        (Grammar.regex("(a"), "this regular expression cannot be kept to: .*unclosed group.$"),
        (Grammar.regex(r"(a)\1"), "backreferences are not supported.$"),
        (Grammar.regex("(?=a)b"), "look-ahead .* is not supported.$"),
        (Grammar.json_schema({"type": "x"}), "this JSON schema cannot be kept to: Invalid type: x"),
        (Grammar.json_schema({"uniqueItems": True, "type": "array"}), "Unimplemented keys: ..uniq"),
        (Grammar.json_schema({"$ref": "#/no"}), "Pointer '/no' does not exist"),
        (Grammar.json_schema({"$ref": "http://127.0.0.1:9/a"}), "cannot be kept to"),
        (Grammar.json_schema({"enum": []}), "Unsatisfiable schema"),
        (Grammar.json_schema({"$ref": "#"}), "no token of this model goes on with a text of it"),
        (Grammar.regex("}"), "no token of this model goes on with a text of it here.$"),
        (Grammar.regex("\ud800"), "surrogates not allowed"),
        (Grammar.context_free("start: x"), "this grammar cannot be kept to: .*unknown name"),
        (Grammar.context_free("nothing"), "Expected ::="),
    ],
)
def test_what_the_library_refuses_is_refused(toy: Engine, grammar: Grammar, words: str) -> None:
    for _ in range(2):
        with pytest.raises(RequestError, match=words) as caught:
            toy.generate(["Hello"], SamplingParams(grammar=grammar))
        assert "\n" not in str(caught.value) and "|" not in str(caught.value)


@pytest.mark.parametrize(
    ("make", "value", "words"),
    [
        (Grammar.json_schema, "{", "the JSON schema is not JSON"),
        (Grammar.json_schema, True, "a JSON schema must be an object, not true"),
        (Grammar.json_schema, "[]", r"a JSON schema must be an object, not \[\]"),
        (Grammar.json_schema, {"a": object()}, "the JSON schema is not JSON"),
        (Grammar.regex, 3, "a regular expression must be a text, not 3"),
        (Grammar.context_free, None, "a grammar must be a text, not None"),
        (Grammar.choice, [], r"a choice must be a list of texts .* not \[\]"),
        (Grammar.choice, "ab", "not 'ab'"),
        (Grammar.choice, ["a", 3], "a choice must be a list of texts"),
    ],
)
def test_bad_grammars(make: Any, value: Any, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        make(value)
