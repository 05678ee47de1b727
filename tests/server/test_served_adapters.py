"""A server over a file with adapters: each is a model of its own, whose parent is the base."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from peft_adapters import base_model, peft_logits, save_adapter
from served_toy import Served, served
from tiny_models import random_tokens, save_tiny

import graphwright
from graphwright.runtime.engine import Engine
from graphwright.runtime.errors import RequestError
from graphwright.runtime.server.app import make_app

GREEDY = {"temperature": 0, "ignore_eos": True, "return_token_ids": True, "max_tokens": 5}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters")
    base = save_tiny("llama", folder / "base", num_layers=1)
    adapters = {
        name: save_adapter(base, folder / name, seed, target_modules="all-linear")
        for seed, name in enumerate(("poet", "org/coder"))
    }
    graphwright.compile(base, adapters=dict(adapters), context=128).save(folder / "file.gw")
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Served]:
    engine = Engine(folder / "file.gw", max_sequences=3, context=64, prefix_cache=True)
    with served(engine) as found:
        yield found


def greedy(folder: Path, adapter: str | None, prompt: list[int]) -> list[int]:
    """What PEFT goes on with."""
    tokens = list(prompt)
    for _ in range(5):
        logits = peft_logits(folder / "base", folder / adapter if adapter else None, tokens)
        tokens.append(int(logits[-1].argmax()))
    return tokens[len(prompt) :]


def test_each_is_listed_with_its_parent(server: Served) -> None:
    data = server.client.get("/v1/models").json()["data"]
    name = data[0]["id"]
    assert [each["id"] for each in data] == [name, "poet", "org/coder"]
    assert [each.get("parent") for each in data] == [None, name, name]
    assert server.client.get("/v1/models/org/coder").json() == data[2]
    assert server.client.get("/v1/models/coder").status_code == 404


def test_the_model_of_a_request_chooses(server: Served, folder: Path) -> None:
    """Together, with prompts that begin alike; None: left out, which is the base."""
    base = server.client.get("/v1/models").json()["data"][0]["id"]
    prompt = random_tokens(20).tolist()
    asked = ["poet", base, "org/coder", None, "poet", base]

    def ask(model: str | None) -> Any:
        body: dict[str, Any] = {"prompt": prompt, **GREEDY}
        return server.post("/v1/completions", **body, **({"model": model} if model else {})).json()

    with ThreadPoolExecutor(len(asked)) as pool:
        answers = list(pool.map(ask, asked))
    for model, answer in zip(asked, answers, strict=True):
        adapter = None if model in (None, base) else model
        assert answer["model"] == (model or base)
        assert answer["choices"][0]["token_ids"] == greedy(folder, adapter, prompt)


def test_a_wrong_name_is_404_and_names_those_that_are_there(server: Served) -> None:
    for path, body in (("/v1/completions", {"prompt": [1]}), ("/detokenize", {"tokens": [1]})):
        answer = server.post(path, model="painter", **body)
        assert answer.status_code == 404
        error = answer.json()["error"]
        assert error["code"] == "model_not_found" and error["param"] == "model"
        assert "'poet', 'org/coder' are" in error["message"]


def test_one_name_for_two_is_refused(folder: Path) -> None:
    with pytest.raises(RequestError, match=r"also the name of an adapter.*--served-model-name"):
        make_app(lambda: Engine(folder / "file.gw"), name="poet")


def test_peft_says_different_things(folder: Path) -> None:
    assert base_model(folder / "base").dtype is torch.float32
    prompt = random_tokens(20).tolist()
    said = {tuple(greedy(folder, name, prompt)) for name in (None, "poet", "org/coder")}
    assert len(said) == 3
