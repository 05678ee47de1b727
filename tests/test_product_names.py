"""No string and no identifier of the product is the name of a model architecture or of its class.

The names are those of transformers' causal-LM registry, model types and classes, but for those of
two or three letters (`git`, `opt`, `phi`). None is excluded for being a word of its own.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

ROOT = Path(__file__).parents[1]
ROOMS = ("graphwright", "frontend", "ir", "passes", "backends", "runtime", "inspector")
SHORTEST = 4


@cache
def registry_names() -> set[str]:
    """Model types and class names, lower case, of at least SHORTEST characters."""
    registry = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items()
    names = {name.lower() for pair in registry for name in pair if isinstance(name, str)}
    return {name for name in names if len(name) >= SHORTEST}


def product_files() -> list[Path]:
    """Every Python file of the product, each once."""
    found = {path.resolve() for room in ROOMS for path in (ROOT / room).rglob("*.py")}
    return sorted(path for path in found if path.is_relative_to(ROOT))


def texts_of(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, text) of every string, docstrings included, and of every identifier."""
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Constant) and isinstance(node.value, (str, bytes)):
            yield line, node.value if isinstance(node.value, str) else node.value.decode("latin-1")
        elif isinstance(node, ast.Name):
            yield line, node.id
        elif isinstance(node, ast.Attribute):
            yield line, node.attr
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield line, node.name
        elif isinstance(node, (ast.arg, ast.keyword)):
            yield line, node.arg or ""
        elif isinstance(node, ast.alias):
            yield line, f"{node.name} {node.asname or ''}"
        elif isinstance(node, ast.ImportFrom):
            yield line, node.module or ""


def words_of(text: str) -> tuple[str, ...]:
    return tuple(re.split(r"[^a-z0-9]+", text.lower()))


@cache
def names_by_words() -> dict[tuple[str, ...], str]:
    """The registry's names, each under its words: gpt_neox under (gpt, neox)."""
    return {words_of(name): name for name in registry_names()}


def names_in(text: str) -> set[str]:
    """The names that occur in `text` as words: `a_name`, `aName` and `name-2` are several words."""
    names = names_by_words()
    words = words_of(re.sub(r"([a-z0-9])([A-Z])", r"\1 \2", text) + " " + text)
    lengths = {len(each) for each in names}
    runs = (words[i : i + n] for n in lengths for i in range(len(words) - n + 1))
    return {names[run] for run in runs if run in names}


@pytest.mark.parametrize("path", product_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_name_of_an_architecture(path: Path) -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}: {', '.join(sorted(hits))}"
        for line, text in texts_of(ast.parse(path.read_text()))
        if (hits := names_in(text))
    ]
    assert not found, "\n".join(found)


def test_the_search_finds_names_however_they_are_written() -> None:
    names = registry_names()
    assert len(names) > 250 and {"llama", "llamaforcausallm", "gpt_neox"} <= names
    for text in ("model.llama", "is_llama", "isLlama", "LlamaForCausalLM", "gpt-neox", "x gpt2 y"):
        assert names_in(text), text
    for text in ("bertrand", "an optimum", "gpt", "opted"):
        assert not names_in(text), text
