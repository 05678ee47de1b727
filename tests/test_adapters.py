"""Files with several adapters, of which each request chooses one: against PEFT itself."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft_adapters import base_model, peft_logits, save_adapter
from tiny_models import random_tokens, round_weights, save_tiny

import graphwright
from graphwright.__main__ import main
from graphwright.backends.tvm.build import BuiltProgram
from graphwright.ir.errors import FrontendError
from graphwright.ir.tolerance import check_close
from graphwright.runtime.engine import Engine
from graphwright.runtime.errors import ArtifactError, RequestError
from graphwright.runtime.sampling_params import SamplingParams
from graphwright.runtime.self_test import self_test

GREEDY = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
PROMPTS = [random_tokens(n, seed=n).tolist() for n in (1, 7, 13, 20, 5)]
LINEARS = ["q_proj", "v_proj", "o_proj", "gate_proj", "down_proj"]
CHOICES = ["all", None, "few", "root", "all"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("llama", tmp_path_factory.mktemp("base") / "llama", num_layers=2)


@pytest.fixture(scope="module")
def adapters(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Of different ranks, scales, targets and types."""
    folder = tmp_path_factory.mktemp("adapters")
    return {
        "all": save_adapter(base, folder / "all", 1, r=5, target_modules="all-linear"),
        "few": save_adapter(
            base, folder / "few", 2, torch.bfloat16, r=16, lora_alpha=32,
            target_modules=["k_proj", "up_proj", "lm_head"],
        ),
        "root": save_adapter(
            base, folder / "root", 3, use_rslora=True, target_modules=["q_proj", "down_proj"],
            rank_pattern={"down_proj": 8}, alpha_pattern={"layers.1.mlp.down_proj": 3},
        ),
    }  # fmt: skip


@pytest.fixture(scope="module")
def file(base: Path, adapters: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("file") / "several.gw"
    return graphwright.compile(base, adapters=dict(adapters), context=128).save(path)


@pytest.fixture
def engine(file: Path) -> Engine:
    return graphwright.load(file, max_sequences=5, context=64, prefix_cache=True)


def check_continued(
    output: Any, base: Path, adapter: Path | None, prompt: list[int], kind: str = "reassociating"
) -> None:
    """The logits that an answer was chosen by are those of PEFT on the same tokens."""
    tokens = [*prompt, *output.token_ids[:-1]]
    want = peft_logits(base, adapter, tokens)[len(prompt) - 1 :]
    check_close(torch.from_numpy(output.logits), want, kind)


def test_each_adapter_alone_is_what_peft_computes(
    engine: Engine, base: Path, adapters: dict[str, Path]
) -> None:
    tokens = random_tokens(40).tolist()
    plain = engine.logits(tokens)
    check_close(torch.from_numpy(plain), peft_logits(base, None, tokens))
    for name, directory in adapters.items():
        got = torch.from_numpy(engine.logits(tokens, adapter=name))
        check_close(got, peft_logits(base, directory, tokens))
        assert (got - torch.from_numpy(plain)).abs().max() > 0.1 * got.std()


def test_a_batch_of_different_ones(engine: Engine, base: Path, adapters: dict[str, Path]) -> None:
    outputs = engine.generate(PROMPTS, GREEDY, adapter=CHOICES, return_logits=True)
    for output, prompt, name in zip(outputs, PROMPTS, CHOICES, strict=True):
        check_continued(output, base, adapters.get(name or ""), prompt)


@settings(max_examples=12, deadline=None, derandomize=True,
          suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip
@given(
    st.lists(
        st.tuples(st.integers(1, 30), st.sampled_from(["all", "few", "root", None])),
        min_size=1, max_size=9,
    )
)  # fmt: skip
def test_any_company_gives_what_each_is_alone(file: Path, drawn: list[tuple[int, Any]]) -> None:
    engine = graphwright.load(file, max_sequences=4, context=64)
    prompts = [random_tokens(n, seed=n).tolist() for n, _ in drawn]
    names = [name for _, name in drawn]
    together = engine.generate(prompts, GREEDY, adapter=names, return_logits=True)
    for prompt, name, got in zip(prompts, names, together, strict=True):
        tokens = [*prompt, *got.token_ids[:-1]]
        alone = engine.logits(tokens, adapter=name)[len(prompt) - 1 :]
        assert got.logits is not None
        check_close(torch.from_numpy(got.logits), torch.from_numpy(alone))


def test_without_an_adapter_it_is_the_base_bit_for_bit(
    engine: Engine, base: Path, tmp_path: Path
) -> None:
    plain = graphwright.load(
        graphwright.compile(base, context=128).save(tmp_path / "plain.gw"), context=64
    )
    for tokens in (random_tokens(3).tolist(), random_tokens(40).tolist()):
        np.testing.assert_array_equal(engine.logits(tokens), plain.logits(tokens))


@pytest.mark.parametrize("quant", ["w8", "w4g32"])
def test_a_quantized_base_keeps_its_integers(quant: str, base: Path, tmp_path: Path) -> None:
    """The base alone is what it is without adapters, bit for bit; with one, its factors are added
    as floats to what the integers stand for: PEFT says what, but for activations of 8 bits."""
    model = base_model(base)
    round_weights(model, quant)
    model.save_pretrained(tmp_path / "rounded")
    rounded = tmp_path / "rounded"
    small = save_adapter(base, tmp_path / "small", 4, r=4, lora_alpha=3, target_modules=LINEARS)
    several = graphwright.load(
        graphwright.compile(rounded, quant=quant, adapters={"small": small}).save(tmp_path / "a.gw")
    )
    plain = graphwright.load(graphwright.compile(rounded, quant=quant).save(tmp_path / "b.gw"))
    for tokens in (random_tokens(3).tolist(), random_tokens(40).tolist()):
        np.testing.assert_array_equal(several.logits(tokens), plain.logits(tokens))
    assert self_test(several).passed
    tokens = random_tokens(40).tolist()
    got = torch.from_numpy(several.logits(tokens, adapter="small"))
    want = peft_logits(rounded, small, tokens)
    assert (got - want).std() < 0.05 * want.std()
    assert (want - peft_logits(rounded, None, tokens)).std() > 0.3 * want.std()


def test_prefixes_are_shared_by_one_adapter_alone(engine: Engine) -> None:
    prompt = random_tokens(40).tolist()
    seen: dict[str | None, list[int]] = {}
    for name, again in itertools.product(["all", None, "few"], range(2)):
        request = engine.submit(prompt, GREEDY, adapter=name)
        while not request.finished:
            engine.step()
        assert request.sequence.reused == (32 if again else 0), name
        assert seen.setdefault(name, request.generated) == request.generated
    assert len({tuple(each) for each in seen.values()}) == 3


def test_guessed_tokens_change_nothing(file: Path) -> None:
    prompt = [5, 6, 7, 8] * 8
    params = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)
    plain = graphwright.load(file, max_sequences=2, context=128)
    guessing = graphwright.load(file, max_sequences=2, context=128, speculate="lookup")
    for names in (["all", None], ["few", "root"]):
        want = plain.generate([prompt, prompt], params, adapter=names)
        got = guessing.generate([prompt, prompt], params, adapter=names)
        assert [each.token_ids for each in got] == [each.token_ids for each in want]
    assert guessing.statistics.speculation()["drafted_tokens"] > 0


def test_steps_with_and_without_adapters_in_turns(file: Path) -> None:
    engine = graphwright.load(file, max_sequences=2, context=64, threads=2)
    want = {name: engine.logits([1, 2, 3], adapter=name) for name in ("all", None, "few")}
    for name in (None, "all", "few", None, "all"):
        np.testing.assert_array_equal(engine.logits([1, 2, 3], adapter=name), want[name])


def test_products_of_adapters_are_left_out_where_no_token_has_one(
    base: Path, adapters: dict[str, Path]
) -> None:
    program = graphwright.compile(base, quant="w8", adapters=dict(adapters)).variants[0]
    assert isinstance(program, BuiltProgram)
    for phases in program.phases.values():
        assert sum(phase.adapters for phase in phases) == 2 * 9  # products with adapters
        for phase in phases:
            assert phase.kernel.name.startswith("routed_linear") == phase.adapters


def test_a_reader_that_knows_no_adapters_refuses_it(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would not tell the steps which ones were chosen."""
    monkeypatch.setattr("graphwright.runtime.artifact.FORMAT_VERSION", 4)
    with pytest.raises(ArtifactError, match="readers of format 5, this one reads up to 4"):
        graphwright.load(file)


def test_layers_that_are_traced_once_have_adapters_of_their_own(tmp_path: Path) -> None:
    base = save_tiny("llama", tmp_path / "base", num_layers=10)
    some = save_adapter(
        base, tmp_path / "some", target_modules=["q_proj", "up_proj"], layers_to_transform=[0, 4, 9]
    )
    engine = graphwright.load(
        graphwright.compile(base, adapters={"some": some}).save(tmp_path / "f")
    )
    tokens = random_tokens(20).tolist()
    got = torch.from_numpy(engine.logits(tokens, adapter="some"))
    check_close(got, peft_logits(base, some, tokens))
    check_close(torch.from_numpy(engine.logits(tokens)), peft_logits(base, None, tokens))


def test_golden_tokens_of_every_adapter(file: Path, engine: Engine) -> None:
    result = self_test(engine)
    assert result.passed and result.positions == 4 * 12
    golden = engine.artifact.json("golden.json")
    assert list(golden["adapters"]) == ["all", "few", "root"]
    assert len({tuple(each["greedy"]) for each in (golden, *golden["adapters"].values())}) == 4


def test_weights_that_are_stored_turned(tmp_path: Path) -> None:
    base = save_tiny("gpt2", tmp_path / "base")
    turned: dict[str, Any] = {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True}
    one = save_adapter(base, tmp_path / "one", **turned)
    engine = graphwright.load(graphwright.compile(base, adapters={"one": one}).save(tmp_path / "f"))
    tokens = random_tokens(20).tolist()
    got = torch.from_numpy(engine.logits(tokens, adapter="one"))
    check_close(got, peft_logits(base, one, tokens))
    check_close(torch.from_numpy(engine.logits(tokens)), peft_logits(base, None, tokens))


def test_factors_keep_their_type(base: Path, tmp_path: Path) -> None:
    """Scales that their type can express are in B; for the others B is kept in float32."""
    exact = save_adapter(base, tmp_path / "a", 1, torch.bfloat16, r=4, lora_alpha=8,
                         target_modules=["o_proj"])  # fmt: skip
    other = save_adapter(base, tmp_path / "b", 1, torch.bfloat16, r=4, lora_alpha=12,
                         target_modules=["o_proj"])  # fmt: skip
    for directory, expected in ((exact, torch.bfloat16), (other, torch.float32)):
        program = graphwright.compile(base, quant="w8", adapters={"it": directory}).program
        types = {
            name[-1]: weight.dtype for name, weight in program.weights.items() if "_lora_" in name
        }
        assert types == {"A": torch.bfloat16, "B": expected}


def test_an_engine_with_an_adapter_for_all(file: Path, engine: Engine) -> None:
    tuned = graphwright.load(file, context=64, adapter="few")
    tokens = random_tokens(9).tolist()
    np.testing.assert_array_equal(tuned.logits(tokens), engine.logits(tokens, adapter="few"))
    with pytest.raises(RequestError, match=r"no adapter 'fw' in this file \(did you mean 'few'\?"):
        graphwright.load(file, adapter="fw")


def test_what_is_not_there_to_choose(engine: Engine, base: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="there are all, few, root"):
        engine.generate([[1]], GREEDY, adapter="poet")
    with pytest.raises(RequestError, match="2 prompts came with 1 adapters"):
        engine.generate([[1], [2]], GREEDY, adapter=["all"])
    plain = graphwright.load(graphwright.compile(base).save(tmp_path / "plain.gw"))
    with pytest.raises(RequestError, match="this file has none; compile it with --adapter few="):
        plain.logits([1], adapter="few")


def test_batch_invariance_is_refused(file: Path) -> None:
    with pytest.raises(RequestError, match=r"with adapters \(all, few, root\), which stay floats"):
        graphwright.load(file, batch_invariant=True)


def test_a_draft_has_none(file: Path) -> None:
    with pytest.raises(RequestError, match="compiled without --adapter"):
        graphwright.load(file, speculate=f"draft:{file}")


def test_a_draft_guesses_for_a_file_with_some(file: Path, base: Path, tmp_path: Path) -> None:
    """Their steps take different pointers and share threads."""
    small = graphwright.compile(base, context=128).save(tmp_path / "draft.gw")
    params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
    guessing = graphwright.load(file, max_sequences=2, context=64, speculate=f"draft:{small}")
    plain = graphwright.load(file, max_sequences=2, context=64)
    prompts, names = [[1, 2, 3], [4, 5]], [None, "all"]
    got, want = (each.generate(prompts, params, adapter=names) for each in (guessing, plain))
    assert [each.token_ids for each in got] == [each.token_ids for each in want]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"target_modules": ["q_proj"], "use_dora": True}, "is one of DoRA"),
        ({"target_modules": ["embed_tokens"]}, "changes the table 'model.embed_tokens.weight'"),
        (
            {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
            "replaces 'lm_head.weight' as a whole",
        ),
    ],
    ids=["dora", "table", "whole"],
)
def test_what_can_only_be_merged(
    config: dict[str, Any], message: str, base: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    directory = save_adapter(base, tmp_path / "adapter", **config)
    out = tmp_path / "out.gw"
    assert main(["compile", str(base), "--adapter", f"it={directory}", "-o", str(out)]) == 1
    said = capsys.readouterr().err
    assert message in said and "merge it with --lora, into a file of its own" in said


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (["nothing"], "'nothing' is not NAME=ADAPTER"),
        (["a=x", "a=y"], "two adapters are called 'a'"),
    ],
)
def test_slips_on_the_command_line(
    asked: list[str], message: str, base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [word for each in asked for word in ("--adapter", each)]
    assert main(["compile", str(base), *options]) == 2
    assert message in capsys.readouterr().err


def test_the_command_line(
    file: Path, base: Path, adapters: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    ask = ["run", str(file), "--prompt-ids", "1,2,3", "--max-tokens", "5", "--json"]
    said = {}
    for name in (None, "all"):
        assert main([*ask, *([] if name is None else ["--adapter", name])]) == 0
        said[name] = json.loads(capsys.readouterr().out)["outputs"][0]["token_ids"]
    assert said[None] != said["all"]
    tokens, model = [1, 2, 3, *said["all"]], peft_logits(base, adapters["all"], [1, 2, 3])
    assert int(model[-1].argmax()) == tokens[3]
    assert main(["run", str(file), "--prompt-ids", "1", "--adapter", "al"]) == 1
    assert "did you mean 'all'?" in capsys.readouterr().err
    assert main(["inspect", str(file)]) == 0
    shown = capsys.readouterr().out
    assert "adapters     3, " in shown
    assert "few, of few: rank 16, 5 weights, sha256 " in shown


def test_tied_tables_are_refused(tmp_path: Path) -> None:
    base = save_tiny("qwen2", tmp_path / "base")
    head = save_adapter(base, tmp_path / "head", target_modules=["lm_head"])
    assert base_model(base).config.tie_word_embeddings
    with pytest.raises(FrontendError, match="one of the two cannot change alone"):
        graphwright.compile(base, adapters={"head": head})
