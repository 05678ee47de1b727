"""`graphwright plan`: its numbers are those that an engine allocates, and no weight is read."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from recurrent_decoders import RECURRENT, recurrent_model
from shared_data import shared_path
from tiny_models import save_tiny, tiny_model
from toy_model import PLAN, write_toy

import graphwright
from graphwright.__main__ import main
from graphwright.frontend.declared_checkpoint import DeclaredTensor
from graphwright.ir.errors import FrontendError

DEMO = Path(__file__).parents[1] / "examples" / "demo-model"
# model, quant, type of the caches
CASES = [
    ("llama", "f32", "auto"),
    ("gemma2", "w4g32", "int8"),
    ("qwen2", "w4g32:head=w8", "f16"),
    ("gpt2", "bf16", "auto"),
    ("qwen3-moe", "w8", "bf16"),
    ("gpt-oss", "w4g32", "auto"),
    ("deepseek-v3", "w8g32", "auto"),
    ("mamba", "w8", "auto"),
    ("qwen3_next", "w4g32", "int8"),
    pytest.param("recurrent_gemma", "f16", "auto", marks=pytest.mark.slow),
]
CACHE: dict[str, Any] = {"heads": 1, "head_dim": 4, "value_dim": 4, "dtype": "int16"}
RECURRENCE = {"name": "scan0", "size": 32, "offset": 0}
SIZES = [(1, 1), (1, 17), (3, 100), (8, 256)]  # sequences, tokens of each


def checkpoint_of(name: str, folder: Path) -> Path:
    if name in RECURRENT:
        recurrent_model(name).save_pretrained(folder)  # type: ignore[operator]
        return folder
    return save_tiny(name, folder)


def plan(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 0) -> dict[str, Any]:
    """What `plan --json` prints."""
    assert main(["plan", *map(str, arguments), "--json"]) == code
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Are they equal but for what the subject is called, and what is said of it?"""
    ignored = ("model", "notes")
    return {k: v for k, v in one.items() if k not in ignored} == {
        k: v for k, v in other.items() if k not in ignored
    }


def refuse(*_: object, **__: object) -> NoReturn:
    raise AssertionError("a plan reads no weight, runs no model and makes no code")


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever reads, quantizes or builds something fails."""
    for place in (
        "graphwright.ir.weights.TensorFile.read",
        "graphwright.passes.quantized_part.QuantizedPart.load",
        "graphwright.passes.narrow_weights.NarrowedWeight.load",
        "graphwright.ir.interpreter.Interpreter.run",
        "graphwright.golden.golden_tokens",
        "graphwright.backends.tvm.build.build",
        "transformers.AutoModelForCausalLM.from_pretrained",
    ):
        monkeypatch.setattr(place, refuse)


@pytest.mark.parametrize(("name", "quant", "cache"), CASES)
def test_an_engine_allocates_what_was_planned(
    name: str, quant: str, cache: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> None:  # fmt: skip
    checkpoint, artifact = checkpoint_of(name, tmp_path / "model"), tmp_path / "model.gw"
    states = name in RECURRENT
    graphwright.compile(checkpoint, check=False, chunk=64, quant=quant, kv_cache_dtype=cache).save(
        artifact
    )
    said = ["--quant", quant, "--kv-cache-dtype", cache, "--chunk", 64]
    for sequences, context in SIZES:
        size = ["--max-sequences", sequences, "--context", context]
        for more, options in (
            (["--no-prefix-cache"], {}),
            *([(["--snapshots", 5], {"prefix_cache": True, "snapshots": 5})] if states else ()),
            ([], {"prefix_cache": True}),
        ):
            engine = graphwright.load(
                artifact, max_sequences=sequences, context=context, threads=1, **options
            )
            found = plan(capsys, artifact, *size, *more)
            assert found["planned"] == engine.memory.allocated == engine.memory.planned
            assert found["total_bytes"] == sum(engine.memory.allocated.values())
            slots = engine.memory.allocated["kv"] - engine._buffers.kv.nbytes
            assert slots == sequences * found["kv"]["slot_bytes"]
        assert found["kv"]["snapshots"] == (4 * sequences if states else 0)
    params = graphwright.SamplingParams(max_tokens=5, ignore_eos=True)
    engine.generate([[1, 2, 3], [4]], params)
    assert found["planned"] == engine.memory.allocated
    request.getfixturevalue("no_weights")
    assert same(plan(capsys, checkpoint, *said, *size), found)


def test_what_is_said_of_weights_and_caches(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], no_weights: None
) -> None:
    checkpoint = save_tiny("gemma2", tmp_path)
    found = plan(capsys, checkpoint, "--quant", "w8:mlp=f32", "--context", 32)
    rows = {row["scheme"]: row for row in found["weights"]["schemes"]}
    assert set(rows) == {"w8", "float32"}
    mlp = 2 * 3 * 64 * 128 * 4  # layers, matrices, elements, bytes
    assert 0 < rows["float32"]["bytes"] - mlp < 4096, "norms and frequencies"
    assert sum(row["read"] for row in rows.values()) == found["weights"]["bytes_per_token"]
    assert sum(row["bytes"] for row in rows.values()) <= found["weights"]["bytes"]
    first, second = found["kv"]["caches"]
    assert (first["count"], first["span"], second["count"], second["span"]) == (1, 8, 1, None)
    assert found["kv"]["bytes_per_token"] == 2 * 2 * 2 * 16 * 4  # layers, k and v, heads
    assert found["kv"]["bytes_per_sequence"] == 32 * found["kv"]["bytes_per_token"]


def test_a_config_alone_will_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], no_weights: None
) -> None:
    checkpoint = save_tiny("llama", tmp_path / "whole", dtype=torch.bfloat16)
    whole = plan(capsys, checkpoint, "--quant", "w4g32")
    assert whole["notes"] == []
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / "config.json").write_bytes((checkpoint / "config.json").read_bytes())
    found = plan(capsys, alone, "--quant", "w4g32")
    assert same(found, whole)
    assert found["notes"] == [
        f"there are no weights in {alone}; the table is that of the model in its config.json"
    ]
    assert main(["plan", str(alone)]) == 0
    assert f"note: {found['notes'][0]}" in capsys.readouterr().out


def test_drawn_numbers_stand_for_small_parameters_only() -> None:
    """The same each time, and others for another name."""
    first, again, other = (
        DeclaredTensor((4,), torch.bfloat16, name) for name in ("sinks", "sinks", "others")
    )
    assert first.load().dtype is torch.bfloat16
    assert torch.equal(first.load(), again.load())
    assert not torch.equal(first.load(), other.load())
    for large in (
        DeclaredTensor((256, 256), torch.float32, "table"),
        DeclaredTensor((4,), torch.int64, "table"),
    ):
        with pytest.raises(FrontendError, match="follows from the values of 'table'"):
            large.load()


def test_a_function(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "decoder.py"
    file.write_text("from tiny_models import tiny_model\nmake = lambda: tiny_model('mistral')\n")
    cpus = "x86-64-v3,x86-64-v4"
    compiled = graphwright.compile(tiny_model("mistral"), quant="w8", check=False, target=cpus)
    compiled.save(tmp_path / "made.gw")
    found = plan(capsys, f"{file}:make", "--quant", "w8", "--target", cpus)
    assert same(found, plan(capsys, tmp_path / "made.gw"))


def test_what_fits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """At the edge: a byte less, and the last sequence or block does not fit any more."""
    artifact = write_toy(tmp_path / "toy.gw")
    size = ["--max-sequences", 3, "--context", 33]
    whole = plan(capsys, artifact, *size)
    needed = whole["total_bytes"] + whole["process_bytes"]
    fits = plan(capsys, artifact, *size, "--memory", f"{needed}B")["memory"]
    assert (fits["missing_bytes"], fits["left_bytes"], fits["most_sequences"]) == (0, 0, 3)
    lacks = plan(capsys, artifact, *size, "--memory", f"{needed - 1}B", code=1)["memory"]
    assert (lacks["missing_bytes"], lacks["most_sequences"]) == (1, 2)
    one = plan(capsys, artifact, "--max-sequences", 1, "--context", 20)
    edge = one["total_bytes"] + one["process_bytes"]
    fits = plan(capsys, artifact, *size, "--memory", f"{edge}B", code=1)["memory"]
    assert fits["longest_context"] == 20
    fits = plan(capsys, artifact, *size, "--memory", f"{edge - 1}B", code=1)["memory"]
    assert fits["longest_context"] == 16, "blocks have four positions"
    none = plan(capsys, artifact, "--memory", "1kB", code=1)["memory"]
    assert none["longest_context"] == none["most_sequences"] == 0
    much = plan(capsys, artifact, "--memory", "1.5GiB")["memory"]
    assert much["bytes"] == 3 << 29
    assert much["longest_context"] == 64 and much["most_sequences"] == 10


def test_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    artifact = write_toy(tmp_path / "toy.gw")
    assert main(["plan", str(artifact), "--memory", "81MB"]) == 0
    out = capsys.readouterr().out
    assert "an engine for 8 sequences of 64 tokens, in memory:" in out
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert "caches 8.19 kB 1.02 kB a sequence, 16 B a token, in blocks of 4 tokens" in lines
    assert "total 17.20 kB taken once, when an engine starts" in lines
    assert "one sequence may have 64 tokens, the most that the model takes" in out
    assert "10 sequences of 64 tokens fit, as many as a step may take" in out
    assert main(["plan", str(artifact), "--memory", "80.01MB"]) == 1
    out = capsys.readouterr().out
    assert "80.01 MB do not hold 8 sequences of 64 tokens: 7.20 kB are missing" in out


def test_snapshots_of_states_are_in_the_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One of them is a slot and two blocks; more sequences take more, unless a number is given."""
    kv = {**PLAN["kv"], "states": [CACHE], "slot_bytes": 128, "recurrent": [RECURRENCE]}
    artifact = write_toy(tmp_path / "states.gw", kv=kv)
    assert main(["plan", str(artifact), "--max-sequences", "2"]) == 0
    line = "  8 x snapshot of a sequence's states, for prompts that begin alike: 256 B each"
    assert line in capsys.readouterr().out.splitlines()
    none = plan(capsys, artifact, "--max-sequences", 2, "--no-prefix-cache")
    for more, count in (([], 8), (["--snapshots", 3], 3), (["--snapshots", 0], 0)):
        found = plan(capsys, artifact, "--max-sequences", 2, *more)
        assert found["total_bytes"] == none["total_bytes"] + 256 * count
        assert found["kv"]["snapshots"] == count
    needed = none["total_bytes"] + none["process_bytes"] + 8 * 256
    fits = plan(capsys, artifact, "--max-sequences", 2, "--memory", f"{needed}B")["memory"]
    assert (fits["left_bytes"], fits["most_sequences"]) == (0, 2)
    assert main(["plan", str(artifact), "--memory", "1GB", "--no-prefix-cache"]) == 0
    assert "x snapshot" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (("nothing",), 1, "there is no file or directory 'nothing': MODEL is a checkpoint"),
        (("{gw}", "--quant", "w8"), 2, "--quant says how a model is to be compiled, and"),
        (("{gw}", "--memory", "8"), 2, "'8' is no size such as 8GB, 1.5GiB or 500MB"),
        (("{gw}", "--memory", "0GB"), 2, "'0GB' is no size"),
        (("{gw}", "--context", "65"), 1, "the context must be from 1 to 64 tokens, not 65"),
        (("{gw}", "--context", "0"), 1, "the context must be from 1 to 64 tokens, not 0"),
        (("{gw}", "--snapshots", "3"), 1, "3 snapshots were asked for, but this model has neither"),
        (("{gw}", "--snapshots", "-1"), 2, "-1 is not in the range"),
        (("{gw}", "--snapshots", "3", "--no-prefix-cache"), 2, "without a prefix cache there are"),
        (("{gw}", "--max-sequences", "11"), 1, "max_sequences must be from 1 to 10, not 11"),
        (("{file}",), 1, "is not a graphwright artifact"),
        (("{empty}",), 1, "has no config.json"),
        (("{config}/config.json",), 1, "give the directory in which"),
        (("{cut}",), 1, "is damaged or cut off"),
        (("{quantized}",), 1, "is quantized already"),
        (("{config}", "--quant", "w5"), 1, "w5"),
        (("{config}", "--target", "abacus"), 1, "'abacus' is not a known CPU"),
        (("{config}", "--dtype", "f16"), 1, "activations on a CPU are f32"),
    ],
)
def test_wrong_use_is_a_sentence(
    arguments: tuple[str, ...], code: int, sentence: str, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    places = {name: tmp_path / name for name in ("empty", "cut", "quantized", "config", "file")}
    for name in ("empty", "cut", "quantized", "config"):
        places[name].mkdir()
    config = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 1}
    (places["config"] / "config.json").write_text(json.dumps(config))
    (places["cut"] / "config.json").write_text(json.dumps(config))
    (places["cut"] / "model.safetensors").write_bytes(b"\x10")
    config["quantization_config"] = {"quant_method": "fp8"}  # type: ignore[assignment]
    (places["quantized"] / "config.json").write_text(json.dumps(config))
    places["file"].write_text("no artifact")
    places["gw"] = write_toy(tmp_path / "toy.gw")
    words = [each.format(**places) for each in arguments]
    assert main(["plan", *words]) == code
    err = capsys.readouterr().err
    assert sentence in err and "Traceback" not in err


def test_eight_billion_parameters_need_little_memory(tmp_path: Path) -> None:
    source = shared_path("data/hf_configs/verbatim/meta-llama--Meta-Llama-3.1-8B_config.json")
    (tmp_path / "config.json").write_bytes(source.read_bytes())
    command = [sys.executable, "-m", "graphwright", "plan", str(tmp_path), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    parameters, frequencies = 8_030_261_248, 64
    assert found["weights"]["bytes"] == 4 * (parameters + frequencies)
    assert found["kv"]["bytes_per_token"] == 32 * 2 * 8 * 128 * 4
    most = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    assert most < 3 << 20, "kB; weights of 16 GB are not there"


def test_a_process_that_runs_stays_within_the_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Weights, a cache that is filled to its end, and the process itself."""
    artifact = tmp_path / "demo.gw"
    graphwright.compile(DEMO, quant="w8", check=False).save(artifact)
    found = plan(capsys, artifact, "--max-sequences", 1, "--context", 1024)
    words = ["run", str(artifact), "--prompt", "Once", "--ignore-eos", "--max-tokens", "1000",
             "--context", "1024", "--threads", "1", "--json"]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "graphwright", *words], capture_output=True, text=True, check=True
    )
    said = json.loads(done.stdout)
    assert len(said["outputs"][0]["token_ids"]) == 1000
    assert said["peak_rss_mb"] * 1e6 < found["total_bytes"] + found["process_bytes"]
