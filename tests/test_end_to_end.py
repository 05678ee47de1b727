"""The whole way by the command line, on trained weights: compile, run, eval, inspect, bench."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from served_toy import served
from shared_data import shared_path
from tiny_models import save_tiny

from graphwright import Grammar, SamplingParams, load
from graphwright.cli import main_command

DEMO = Path(__file__).parents[1] / "examples" / "demo-model"


def cli(*arguments: object) -> str:
    """Standard output of a verb that must succeed."""
    words = [str(argument) for argument in arguments]
    result = CliRunner().invoke(main_command, words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def cli_json(*arguments: object) -> dict[str, Any]:
    """The JSON object that a verb prints."""
    value: dict[str, Any] = json.loads(cli(*arguments, "--json"))
    return value


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The demo model in float32 and int8."""
    folder = tmp_path_factory.mktemp("demo")
    paths = {quant: folder / f"{quant}.gw" for quant in ("f32", "w8")}
    for quant, path in paths.items():
        cli("compile", DEMO, "--quant", quant, "-o", path)
    return paths


def test_the_demo_model_writes_words_and_int8_is_smaller(demo: dict[str, Path]) -> None:
    for path in demo.values():
        result = cli_json("run", path, "--prompt", "Once upon a time", "--max-tokens", 40)
        output = result["outputs"][0]
        assert len(output["token_ids"]) <= 40
        assert (output["text"].isascii() and " the " in output["text"]) or " a " in output["text"]
        assert {"load_s", "ttft_s", "prefill_tps", "decode_tps", "peak_rss_mb"} <= set(result)
    assert demo["w8"].stat().st_size < demo["f32"].stat().st_size


def test_a_ragged_batch_gives_what_each_prompt_gives_alone(demo: dict[str, Path]) -> None:
    prompts = ["Once upon a time", "The", "One day, a girl named Lily went to the park and"]
    flags = [word for prompt in prompts for word in ("--prompt", prompt)]
    together = cli_json("run", demo["f32"], *flags, "--max-tokens", 24, "--temperature", 0)[
        "outputs"
    ]
    for prompt, output in zip(prompts, together, strict=True):
        alone = cli_json(
            "run", demo["f32"], "--prompt", prompt, "--max-tokens", 24, "--temperature", 0
        )["outputs"][0]
        assert alone["token_ids"] == output["token_ids"]


def test_the_server_says_what_the_engine_says(demo: dict[str, Path]) -> None:
    """Streamed and whole answers at once, by compiled code that another thread runs."""
    prompts = ["Once upon a time", "The", "One day, a girl named Lily went to the park and", "Tom"]
    params = SamplingParams(max_tokens=40, temperature=0)
    expected = [output.text for output in load(demo["w8"]).generate(prompts, params)]

    def ask(number: int) -> str:
        body = {"prompt": prompts[number % 4], "max_tokens": 40, "temperature": 0}
        if number < 4:
            return str(server.complete(**body)["choices"][0]["text"])
        chunks = server.stream("/v1/completions", **body)
        return "".join(chunk["choices"][0]["text"] for chunk in chunks)

    with served(load(demo["w8"], max_sequences=6)) as server, ThreadPoolExecutor(8) as clients:
        assert list(clients.map(ask, range(8))) == expected * 2
        assert server.is_idle()


def test_log_probabilities_are_those_of_eager(demo: dict[str, Path]) -> None:
    """Also where penalties and temperature change what is drawn."""
    import torch
    from transformers import AutoModelForCausalLM

    engine = load(demo["f32"])
    params = SamplingParams(
        temperature=0.9, seed=4, repetition_penalty=1.2, max_tokens=30, logprobs=5
    )
    (output,) = engine.generate(["Once upon a time"], params)
    assert engine.tokenizer is not None and output.logprobs is not None
    prompt = engine.tokenizer.encode("Once upon a time")
    model = AutoModelForCausalLM.from_pretrained(DEMO, dtype=torch.float32)
    with torch.no_grad():
        logits = model(torch.tensor([prompt + output.token_ids])).logits[0, len(prompt) - 1 : -1]
    expected = torch.log_softmax(logits.double(), -1)
    assert len(output.logprobs) == len(output.token_ids)
    for row, found in zip(expected, output.logprobs, strict=True):
        assert abs(row[found.token_id].item() - found.logprob) < 1e-4
        best = row.topk(5)
        assert all(abs(row[i].item() - value) < 1e-4 for i, value in found.top)
        assert [value for _, value in found.top] == pytest.approx(best.values.tolist(), abs=1e-4)


def test_answers_keep_to_a_schema(demo: dict[str, Path], tmp_path: Path) -> None:
    """A model that knows stories alone writes JSON, by the command line and over HTTP."""
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 12},
            "age": {"type": "integer", "minimum": 1, "maximum": 99},
            "likes": {"type": "array", "items": {"enum": ["dogs", "cats"]}, "maxItems": 2},
        },
        "required": ["name", "age", "likes"],
        "additionalProperties": False,
    }

    def check(text: str) -> None:
        found = json.loads(text)
        assert list(found) == ["name", "age", "likes"]
        assert len(found["name"]) <= 12 and 1 <= found["age"] <= 99
        assert set(found["likes"]) <= {"dogs", "cats"} and len(found["likes"]) <= 2

    file = tmp_path / "schema.json"
    file.write_text(json.dumps(schema))
    prompt = "Once upon a time there was a girl."
    (output,) = cli_json("run", demo["w8"], "--prompt", prompt, "--json-schema", file, "--seed", 1)[
        "outputs"
    ]
    assert output["finish_reason"] == "stop"
    check(output["text"])
    described = {"name": "girl", "schema": schema, "strict": True}
    body = {
        "prompt": prompt, "max_tokens": 200, "seed": 2, "n": 4,
        "response_format": {"type": "json_schema", "json_schema": described},
    }  # fmt: skip
    with served(load(demo["w8"], max_sequences=4)) as server:
        choices = server.complete(**body)["choices"]
    assert len({choice["text"] for choice in choices}) > 1
    for choice in choices:
        assert choice["finish_reason"] == "stop"
        check(choice["text"])


def test_int8_costs_little_likelihood(demo: dict[str, Path], tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(
        "Once upon a time, there was a little girl named Lily. She loved to play outside in the "
        "park. One day, she saw a big, red ball. She wanted to play with it. " * 12
    )
    exact, quantized = (cli_json("eval", demo[quant], text) for quant in ("f32", "w8"))
    assert exact["tokens"] == quantized["tokens"] > 200
    assert abs(quantized["nll"] - exact["nll"]) < 0.02 * exact["nll"]


def test_the_views_of_an_artifact(demo: dict[str, Path]) -> None:
    assert "quant        w8" in cli("inspect", demo["w8"])
    passes = cli("inspect", demo["w8"], "--passes")
    assert "recognize-attention" in passes and "of tolerance" in passes
    graph = cli("inspect", demo["w8"], "--graph", "last")
    assert "gw.cached_attention" in graph and "gw.quantized_linear" in graph
    assert "softmax" not in graph
    assert "arena" in cli("inspect", demo["w8"], "--memory")
    assert "linear_w8" in cli("inspect", demo["w8"], "--ledger")


def test_golden_tokens_of_the_reference_are_replayed(demo: dict[str, Path]) -> None:
    for quant, path in demo.items():
        result = cli_json("verify", path)
        assert result["passed"] and result["positions"] == 12
        if quant == "f32":  # with int8 a rounding may fall the other way on another CPU
            assert result["worst"] < 0.05


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the variants are for x86-64")
def test_one_file_for_several_cpus(tmp_path: Path) -> None:
    path = tmp_path / "several.gw"
    target = "x86-64-v3,x86-64-v4-vnni"
    summary = cli_json("compile", DEMO, "--quant", "bf16", "--target", target, "-o", path)
    assert summary["target"] == "x86-64-v4-vnni, x86-64-v3"
    entries = cli_json("inspect", path)["entries"]
    names = {"lib/x86-64-v3/step.so", "lib/x86-64-v4-vnni/step.so"}
    assert names == {name for name in entries if name.startswith("lib/")}
    assert sum(name == "weights.bin" for name in entries) == 1
    result = cli_json("verify", path)
    assert result["passed"] and result["target"] in target
    assert f"this machine runs {result['target']}" in cli("inspect", path)
    text = cli_json("run", path, "--prompt", "Once upon a time", "--max-tokens", 16)
    assert text["outputs"][0]["text"].isascii()


def test_bench_reports_every_figure(demo: dict[str, Path]) -> None:
    row = cli_json("bench", demo["w8"], "--prompt-len", 16, "--gen-len", 8, "--reps", 1)
    wanted = {"prefill_tps", "decode_tps", "ttft_s", "load_s", "peak_rss_mb", "artifact_mb",
              "weight_bytes_per_token", "effective_gbps"}  # fmt: skip
    assert wanted <= set(row)
    assert all(row[name] > 0 for name in wanted)


def test_a_trace_shows_the_text_being_made(demo: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    said = cli("bench", demo["w8"], "--trace", path, "--prompt-len", 16, "--gen-len", 2)
    assert "a prefill step of 16 tokens and 2 decode steps on" in said
    host = [each for each in json.loads(path.read_text())["traceEvents"] if each["tid"] == 1]
    samples, texts = ([e for e in host if e["name"] == name] for name in ("sample", "text"))
    assert len(samples) == 3 and texts
    for text in texts:
        assert any(
            each["ts"] <= text["ts"] and text["ts"] + text["dur"] <= each["ts"] + each["dur"]
            for each in samples
        )


def test_the_same_inputs_give_the_same_bytes(demo: dict[str, Path], tmp_path: Path) -> None:
    again = tmp_path / "again.gw"
    cli("compile", DEMO, "--quant", "w8", "-o", again)
    first, second = (cli_json("inspect", path)["entries"] for path in (demo["w8"], again))
    differing = [name for name in first if first[name] != second[name]]
    assert differing == [], f"these entries differ between two runs: {differing}"
    assert again.read_bytes() == demo["w8"].read_bytes()


def test_whatever_order_sets_have_in_a_process(tmp_path: Path) -> None:
    """gemma 3 makes a rotary embedding for each of `set(layer_types)`."""
    checkpoint = save_tiny("gemma3", tmp_path / "checkpoint")
    paths = [tmp_path / f"{seed}.gw" for seed in (1, 2)]
    flags = [str(checkpoint), "--quiet", "--no-check"]
    command = [sys.executable, "-m", "graphwright", "compile", *flags]
    running = [
        subprocess.Popen(
            [*command, "-o", str(path)], env={**os.environ, "PYTHONHASHSEED": path.stem}
        )
        for path in paths
    ]  # fmt: skip
    assert [process.wait() for process in running] == [0, 0]
    assert paths[0].read_bytes() == paths[1].read_bytes()


@pytest.mark.shared
def test_stories260k_gives_its_golden_tokens(tmp_path: Path) -> None:
    model = shared_path("models/stories260K-hf")
    golden = json.loads(shared_path("data/models/stories260K.greedy.json").read_text())
    cli("compile", model, "-o", tmp_path / "s.gw")
    result = cli_json("run", tmp_path / "s.gw", "--prompt-ids", "1", "--max-tokens", 256)
    assert [1, *result["outputs"][0]["token_ids"]] == golden["token_ids"]


@pytest.mark.shared
def test_texts_of_byte_tokens_keep_to_a_grammar(tmp_path: Path) -> None:
    """A vocabulary of 512, with spaces in front of words and characters that are three tokens."""
    cli("compile", shared_path("models/stories260K-hf"), "-o", tmp_path / "s.gw")
    pattern = "(日本|é| [A-Z][a-z]{1,9}){2,4}[!?] ?(naïve|👩‍👧|\\n)"
    engine = load(tmp_path / "s.gw", max_sequences=8)
    grammars = [Grammar.regex(pattern), Grammar.json_schema({"enum": ["日本", {"é": [1, " "]}]})]
    params = [
        SamplingParams(temperature=1.5, seed=seed, grammar=grammars[seed % 2], logprobs=1)
        for seed in range(8)
    ]
    outputs = engine.generate(["Once upon a time"] * 8, params)
    for number, output in enumerate(outputs):
        assert output.finish_reason == "stop"
        if number % 2:
            assert json.loads(output.text) in ("日本", {"é": [1, " "]})
        else:
            assert re.fullmatch(pattern, output.text), output.text
        assert engine.tokenizer is not None and output.logprobs is not None
        ids = [each for each in output.token_ids if each not in engine.eos_ids]
        assert b"".join(map(engine.tokenizer.token_bytes, ids)).decode() == output.text
    assert len({output.text for output in outputs}) > 3


STORY = """Once upon a time, there was a little dog named Max. Max liked to play in the garden with
his big red ball. One day, the ball rolled under the gate and into the street. "Oh no!" said Max. He
was very sad. Then a kind girl saw the ball. She picked it up and gave it back to Max. "Thank you,"
said Max, and he was happy again. They played together all day and became good friends.
"""


def test_a_calibrated_artifact_says_so_and_costs_little(
    demo: dict[str, Path], tmp_path: Path
) -> None:
    text, other, path = tmp_path / "text.txt", tmp_path / "other.txt", tmp_path / "w4.gw"
    text.write_text(STORY * 3)
    other.write_text(STORY.replace("Max", "Tom").replace("dog", "cat").replace("ball", "hat"))
    options = ("--quant", "w4g32", "--calibrate", text, "--no-check")
    found = cli_json("compile", DEMO, *options, "-o", path)
    assert re.match(r"\d+ tokens in 1 sequences, sha256 [0-9a-f]{64}$", found["calibration"])
    assert found["calibration"] in cli("inspect", path)
    tokens = found["calibration"].split(",")[0]
    assert f"rounded by the inputs that {tokens} give to 17 weights" in cli(
        "inspect", path, "--passes"
    )
    assert "golden positions agree" in cli("verify", path)
    exact, rounded = (cli_json("eval", each, other)["nll"] for each in (demo["f32"], path))
    assert rounded < 1.02 * exact


def test_a_model_that_writes_what_calibrates_it_costs_little(
    demo: dict[str, Path], tmp_path: Path
) -> None:
    text, path = tmp_path / "text.txt", tmp_path / "w4.gw"
    text.write_text(STORY)
    options = ("--quant", "w4g32", "--calibrate", "self", "--calibration-tokens", 512)
    found = cli_json("compile", DEMO, *options, "--no-check", "-o", path)
    assert found["calibration"] == (
        "512 tokens in 2 sequences written by the model at temperature 1.3 with seed 0"
    )
    assert found["calibration"] in cli("inspect", path, "--passes")
    assert "golden positions agree" in cli("verify", path)
    exact, rounded = (cli_json("eval", each, text)["nll"] for each in (demo["f32"], path))
    assert rounded < 1.02 * exact
