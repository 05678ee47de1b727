"""GGUF files from the command line to tokens: recipes, kept integers, tokenizers, plans."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from gguf_checkpoints import (
    EPSILON,
    byte_level_vocabulary,
    sentencepiece_vocabulary,
    write_gguf,
)
from shared_data import shared_path
from tiny_models import save_tiny

import graphwright
from graphwright.cli import main_command
from graphwright.frontend.gguf_files.nearest_schemes import stored_recipe
from graphwright.frontend.gguf_files.reading import read_gguf
from graphwright.frontend.gguf_files.vocabulary import vocabulary_files
from graphwright.gguf_input import capture_gguf_file, gguf_file
from graphwright.ir import FrontendError
from graphwright.ir.schemes import dequantize
from graphwright.passes.quantized_part import QuantizedPart
from graphwright.runtime.tokenizer import Tokenizer

DEMO = Path(__file__).parents[1] / "examples" / "demo-model"
TEXTS = [
    "Once upon a time, there was a girl.",
    " two  spaces",
    "a <s> b</s>",
    "naïve 日本 🙂\n\n\ttabs 1234567",
    "",
]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("checkpoints") / "tiny"
    config = {"hidden_size": 128, "intermediate_size": 192, "rms_norm_eps": EPSILON}
    return save_tiny("llama", directory, **config)


def invoke(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(main_command, [str(each) for each in arguments])
    return result.exit_code, result.output + (str(result.exception or ""))


# ---- integers

KEPT = {"Q4_0": "w4g32", "Q5_0": "w8g32", "Q8_0": "w8g32"}


@pytest.mark.parametrize("kind", KEPT)
def test_integers_are_kept_through_turned_rows_and_merged_projections(
    kind: str, llama: Path, tmp_path: Path
) -> None:
    """Nothing is said of a scheme, and none of the file's matrices is rounded again."""
    path = write_gguf(llama, tmp_path / "model.gguf", kind)
    compiled = graphwright.compile(path, check=False)
    assert compiled.options.quant == KEPT[kind]
    notes = [note for record in compiled.program.log for note in record.notes]
    assert notes == ["10 weights keep the integers that the checkpoint stores"]
    parts = [each for _, each in compiled.program.weights.items()]
    quantized = [each.quantization for each in parts if isinstance(each, QuantizedPart)]
    assert {id(each) for each in quantized} and len({id(each) for each in quantized}) == 10
    for each in quantized:
        assert torch.equal(dequantize(*each.parts()), each.weight.load())


def test_minus_128_is_rounded_again(llama: Path, tmp_path: Path) -> None:
    """The kernels multiply -127 to 127, and a file may hold one more."""
    path = write_gguf(llama, tmp_path / "model.gguf", "Q8_0")
    tensor = read_gguf(path).tensors["blk.0.ffn_down.weight"]
    data = bytearray(path.read_bytes())
    data[tensor.offset + 2] = 0x80  # the first value behind the first scale
    path.write_bytes(data)
    notes = [
        note
        for record in graphwright.compile(path, check=False).program.log
        for note in record.notes
    ]
    assert notes == [
        "9 weights keep the integers that the checkpoint stores",
        "1 weights are rounded again; the checkpoint stores them as w8g32",
    ]


def test_the_same_tokens_as_of_the_checkpoint(llama: Path, tmp_path: Path) -> None:
    answers = []
    for model in (llama, write_gguf(llama, tmp_path / "model.gguf", "F32")):
        engine = graphwright.compile(model, quant="f32").load(context=64)
        sampling = graphwright.SamplingParams(max_tokens=20, temperature=0)
        answers.append(engine.generate([[1, 5, 9]], sampling)[0].token_ids)
    assert answers[0] == answers[1]
    assert len(set(answers[0])) > 4


def _mixed(name: str) -> str:
    return {"output.weight": "Q8_0", "token_embd.weight": "F16"}.get(name, "Q4_0")


@pytest.mark.parametrize(
    ("kind", "recipe", "stored"),
    [
        ("F16", "f16", "F16 100%"),
        ("BF16", "bf16", "BF16 100%"),
        ("F32", "f32", "F32 100%"),
        ("Q4_1", "w8g32", "Q4_1 100%"),
        (_mixed, "w4g32:head=w8g32,embed=f16", "Q4_0 88%, F16 6%, Q8_0 6%"),
    ],
)
def test_the_recipe_nearest_to_a_file(
    kind: Any, recipe: str, stored: str, llama: Path, tmp_path: Path
) -> None:
    found = stored_recipe(read_gguf(write_gguf(llama, tmp_path / "model.gguf", kind)))
    assert (found.recipe, found.stored) == (recipe, stored)


# ---- tokenizers


def tokenizer_of(path: Path) -> tuple[Tokenizer, dict[str, bytes]]:
    files, why_not = vocabulary_files(read_gguf(path))
    assert why_not is None
    config = json.loads(files["tokenizer_config.json"])
    return Tokenizer(files["tokenizer.json"], config), files


def checkpoint_tokenizer(directory: Path) -> Tokenizer:
    config = json.loads((directory / "tokenizer_config.json").read_text())
    return Tokenizer((directory / "tokenizer.json").read_bytes(), config)


def check_same_ids(got: Tokenizer, wanted: Tokenizer) -> None:
    for text in TEXTS:
        ids = wanted.encode(text)
        assert got.encode(text) == ids, text
        assert got.decode(ids) == wanted.decode(ids), text
    assert (got.bos_id, got.eos_id, got.size) == (wanted.bos_id, wanted.eos_id, wanted.size)


def test_a_byte_level_tokenizer(tmp_path: Path) -> None:
    keys = {
        **byte_level_vocabulary(DEMO),
        "tokenizer.chat_template": "{{ messages[0].content }}",
        "tokenizer.ggml.eot_token_id": 7,
        "general.sampling.temp": 0.5,
        "general.sampling.top_k": 20,
    }
    tokenizer, files = tokenizer_of(write_gguf(DEMO, tmp_path / "model.gguf", keys=keys))
    check_same_ids(tokenizer, checkpoint_tokenizer(DEMO))
    assert files["chat_template.jinja"] == b"{{ messages[0].content }}"
    assert json.loads(files["generation_config.json"]) == {
        "bos_token_id": 0, "eos_token_id": [1, 7], "temperature": 0.5, "top_k": 20,
        "do_sample": True,
    }  # fmt: skip


@pytest.mark.shared
def test_a_sentencepiece_tokenizer(tmp_path: Path) -> None:
    checkpoint = shared_path("models/stories260K-hf")
    keys = sentencepiece_vocabulary(checkpoint)
    tokenizer, _ = tokenizer_of(write_gguf(checkpoint, tmp_path / "model.gguf", keys=keys))
    check_same_ids(tokenizer, checkpoint_tokenizer(checkpoint))
    keys["tokenizer.ggml.add_space_prefix"] = False
    bare, _ = tokenizer_of(write_gguf(checkpoint, tmp_path / "bare.gguf", keys=keys))
    assert bare.encode(" time") == tokenizer.encode("time")
    assert bare.decode(bare.encode(" time")) == " time"
    assert bare.decode(bare.encode("time")) == "time"


def test_a_tokenizer_that_is_not_known(tmp_path: Path) -> None:
    """How texts are cut is not guessed; a tokenizer.json beside the file says it."""
    path = tmp_path / "model.gguf"
    write_gguf(DEMO, path, "Q8_0", keys=byte_level_vocabulary(DEMO, "of-its-own"))
    notes: list[str] = []
    _, files = capture_gguf_file(path, None, notes)
    reason = "texts are to be cut as 'of-its-own' does, which transformers does not know"
    assert notes == [
        f"{reason}: prompts are token ids, unless a tokenizer.json is put beside the file"
    ]
    assert list(files) == ["generation_config.json"]
    text = tmp_path / "text.txt"
    text.write_text("Once upon a time")
    with pytest.raises(FrontendError, match=r"has no tokenizer\.json to read"):
        graphwright.compile(path, quant="w4g32", calibration=text, check=False)
    (tmp_path / "tokenizer.json").write_bytes((DEMO / "tokenizer.json").read_bytes())
    notes.clear()
    _, files = capture_gguf_file(path, None, notes)
    assert notes == [f"{reason}; the tokenizer is {tmp_path / 'tokenizer.json'}"]
    assert files["tokenizer.json"] == (DEMO / "tokenizer.json").read_bytes()


# ---- the command line


def test_compile_run_and_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    keys = byte_level_vocabulary(DEMO)
    path = write_gguf(DEMO, tmp_path / "demo-Q8_0.gguf", "Q8_0", keys=keys)
    code, text = invoke("compile", path, "--no-check")
    assert code == 0, text
    assert "note: --quant w8g32, the nearest to what the file stores: Q8_0 100%\n" in text
    assert (tmp_path / "demo-Q8_0.gw").is_file()
    code, text = invoke("run", "demo-Q8_0.gw", "--prompt", "Once upon a time", "--max-tokens", 12)
    assert code == 0 and ", there was a little girl" in text
    rows = [json.loads(invoke("plan", model, "--json")[1]) for model in (path, "demo-Q8_0.gw")]
    assert rows[0].pop("notes") == ["--quant w8g32, the nearest to what the file stores: Q8_0 100%"]
    assert rows[1].pop("notes") == []
    assert rows[0]["weights"] == rows[1]["weights"]


def test_directories(llama: Path, tmp_path: Path) -> None:
    """One file, whatever parts it has, is the model; of several, one must be named."""
    assert gguf_file(tmp_path) is None
    first = write_gguf(llama, tmp_path / "model.gguf", "F16", parts=2)
    assert gguf_file(tmp_path) == first
    write_gguf(llama, tmp_path / "other.gguf")
    with pytest.raises(FrontendError, match=r"holds 2 GGUF files .*: give one of them"):
        gguf_file(tmp_path)
    code, text = invoke("compile", tmp_path)
    assert code == 1 and "give one of them, such as" in text
    (tmp_path / "config.json").write_bytes((llama / "config.json").read_bytes())
    code, text = invoke("compile", tmp_path)
    assert code == 1 and "holds no weights" in text and "model-00001-of-00002.gguf" in text
    named = (tmp_path / "other.gguf").rename(tmp_path / "sha256-0123")
    assert gguf_file(named) == named
    assert gguf_file(tmp_path / "config.json") is None


def test_without_the_package(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_gguf(llama, tmp_path / "model.gguf")
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    with pytest.raises(FrontendError, match=r"pip install 'graphwright\[gguf\]'"):
        graphwright.compile(path)
