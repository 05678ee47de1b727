"""`--quant auto` from models to files: budgets that hold in the engine, the views, wrong input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from recurrent_decoders import RECURRENT, recurrent_model
from tiny_models import save_tiny, tiny_model

import graphwright
from graphwright.__main__ import main
from graphwright.frontend.capture import capture_module
from graphwright.ir.errors import PassError
from graphwright.passes.auto_recipe import AutoRecipe
from graphwright.passes.choose_schemes import ChooseSchemes
from graphwright.passes.divergence import Reference
from graphwright.passes.narrow_weights import NarrowWeights
from graphwright.passes.pipeline import pipeline
from graphwright.passes.quantize_weights import QuantizeWeights
from graphwright.passes.recipe import Recipe
from graphwright.passes.running import run_passes
from graphwright.passes.scheme_options import decisions_of
from graphwright.passes.sensitivity import measure_losses
from graphwright.runtime.comparison import compare_tokens

TOKENS = torch.randint(0, 128, (12, 60), generator=torch.Generator().manual_seed(3))


def test_a_budget_holds_in_the_engine(tmp_path: Path) -> None:
    model = tiny_model("qwen2")
    exact = graphwright.load(graphwright.compile(model).save(tmp_path / "exact.gw"))
    ids = torch.randint(0, 128, (2000,), generator=torch.Generator().manual_seed(9)).tolist()
    lost, size = [], []
    for most in (1e-2, 1e-3):
        compiled = graphwright.compile(model, quant="auto", max_kl=most, calibration=TOKENS)
        choice = compiled.program.choice
        assert choice is not None and choice.measured <= most
        path = compiled.save(tmp_path / "mixed.gw")
        found = compare_tokens(graphwright.load(path), exact, ids, window=60)
        assert found.kl_mean < 1.3 * most, "of other random tokens"
        assert found.kl_mean == pytest.approx(choice.measured, rel=0.4)
        lost.append(found.kl_mean)
        size.append(path.stat().st_size)
        assert compiled.options.calibration is not None
    assert lost[0] > lost[1] and size[0] < size[1]


def test_the_same_inputs_give_the_same_bytes_and_views(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = save_tiny("llama", tmp_path / "model")
    files = [tmp_path / "a.gw", tmp_path / "b.gw"]
    for file in files:
        assert main(["compile", str(checkpoint), "--quant", "auto:w4g32,w8,bf16", "--bits", "6.5",
                     "-o", str(file), "--json"]) == 0  # fmt: skip
    assert files[0].read_bytes() == files[1].read_bytes()
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["quant"] == "auto:w4g32,w8,bf16" and told["calibration"] is None
    assert 6 < told["choice"]["bits"] <= 6.5 and told["choice"]["measured"] > 0
    record = view(capsys, files[0], "--quant", "--json")
    assert {each["scheme"] for each in record["weights"]} <= {"w4g32", "w8", "bf16"}
    assert record["bits"] == told["choice"]["bits"] and record["held_out"] == 4096
    line = [(each["bits"], each["kl"]) for each in record["line"]]
    assert line == sorted(line) and [kl for _, kl in line] == sorted((kl for _, kl in line))[::-1]
    table = view(capsys, files[0], "--quant")
    for text in ("at most 6.5 bits a weight", "model_layers_0_mlp_gate_up_proj_weight", "[",
                 "what was tried", "the best choices", "written by the model"):  # fmt: skip
        assert text in table, text
    assert "choose-schemes" in view(capsys, files[0], "--passes")
    assert "bits a weight, KL divergence" in view(capsys, files[0])
    options = json.loads(graphwright.runtime.artifact.Artifact.open(files[0]).read("options.json"))
    assert (options["bits"], options["max_kl"], options["max_size"]) == (6.5, None, None)


def view(capsys: pytest.CaptureFixture[str], file: Path, *arguments: str) -> Any:
    assert main(["inspect", str(file), *arguments]) == 0
    text = capsys.readouterr().out
    return json.loads(text) if "--json" in arguments else text


def test_a_size_is_not_exceeded(tmp_path: Path) -> None:
    for most in (70_000, 100_000):
        compiled = graphwright.compile(
            tiny_model("llama"), quant="auto", max_size=most, calibration=TOKENS
        )
        assert 0.8 * most < compiled.built.plan["weights"]["bytes"] <= most


@pytest.mark.parametrize("family", ["llama", "qwen3-moe", "gpt-oss", "mamba", "qwen3_next"])
def test_forks_of_caches_and_states_lose_what_whole_programs_do(family: str) -> None:
    model = recurrent_model(family) if family in RECURRENT else tiny_model(family)
    program = capture_module(model)
    steps = pipeline()
    run_passes(program, steps[: [type(step) for step in steps].index(ChooseSchemes)])
    decisions = decisions_of(program, AutoRecipe.parse("auto:w8"))
    sequences = tuple(TOKENS[:2, :20])
    found = measure_losses(program, decisions, sequences)
    reference = Reference(program, sequences)
    for decision, losses in zip(decisions, found, strict=True):
        ((scheme, loss),) = losses.items()
        other, recipe = program.copy(), Recipe.parse(f"f32:^{decision.name}$={scheme}")
        run_passes(other, [NarrowWeights(recipe), QuantizeWeights(recipe)])
        want = reference.compare(other).mean
        assert loss.kl == pytest.approx(want, rel=1e-3, abs=1e-10), decision.name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--quant", "auto"], "needs one of --max-kl"),
        (["--quant", "auto", "--bits", "5", "--max-kl", "0.1"], "one alone"),
        (["--bits", "5"], "--bits: only with --quant auto"),
        (["--quant", "w8", "--max-size", "4GB"], "--max-size: only with --quant auto"),
        (["--quant", "auto", "--max-size", "4 apples"], "'4 apples' is no size such as 8GB"),
        (["--quant", "auto", "--bits", "0"], "0.0 is not in the range x>0"),
        (["--quant", "auto", "--max-kl", "-1"], "-1.0 is not in the range x>=0"),
    ],
)
def test_wrong_use(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compile", str(tmp_path), "-o", str(tmp_path / "x.gw"), *arguments]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_what_cannot_be_met_and_what_cannot_be_planned(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = save_tiny("llama", tmp_path / "model")
    for arguments, message in (
        (["compile", "--quant", "auto:w5", "--bits", "5"], "'w5' is not a quantization scheme"),
        (["compile", "--quant", "auto:w8", "--bits", "5"], "bits=5 cannot be met"),
        (["compile", "--quant", "auto:w8", "--max-kl", "0"], "nats a token at least"),
        (["plan", "--quant", "auto"], "a plan reads no weight"),
    ):
        verb, *rest = arguments
        extra = ["-o", str(tmp_path / "x.gw")] if verb == "compile" else []
        assert main([verb, str(checkpoint), *rest, *extra]) == 1
        error = capsys.readouterr().err
        assert message in error and "Traceback" not in error
    with pytest.raises(PassError, match="max_kl says what the choice of schemes must keep to"):
        graphwright.compile(tiny_model("llama"), quant="w8", max_kl=0.1)
    plain = graphwright.compile(tiny_model("llama"), quant="w8").save(tmp_path / "w8.gw")
    assert main(["inspect", str(plain), "--quant"]) == 1
    assert "its recipe w8 says them: compile with --quant auto" in capsys.readouterr().err
