"""On a GPU: whole tiny models through the file and the engine, against eager. `make test-gpu`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_decoders import tiny_decoder
from tiny_models import continued_logits, random_tokens, round_weights, save_tiny
from transformers import AutoModelForCausalLM

from graphwright.runtime.artifact import Artifact
from graphwright.runtime.cuda.driver import Driver
from graphwright.runtime.cuda.library import CudaLibrary
from graphwright.runtime.engine import Engine
from graphwright.runtime.errors import ArtifactError
from graphwright.runtime.sampler import Sampler
from graphwright.runtime.sampling_params import SamplingParams


def capability() -> int | None:
    """Of the first GPU, 90 for 9.0; None where there is none."""
    try:
        return Driver().capability()
    except ArtifactError:
        return None


CAPABILITY = capability()
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(CAPABILITY is None, reason="no GPU, driver or cuda-bindings here"),
]
MODELS = ["llama", "qwen2", "mistral", "gpt2", "gemma2", "opt", "falcon", "bloom", "mixtral",
          "gpt-oss", "deepseek-v3"]  # fmt: skip
# Of the logits' standard deviation, by the activations' type: bfloat16 rounds to 2^-9 after every
# step, float16 to 2^-12; float32 products may use other orders of summation only.
ERROR = {"f32": 2e-3, "bf16": 0.25, "f16": 0.03}
# Where two experts are nearly as likely, rounding can choose another one than float32 does, and
# what comes behind that position differs, too: only the median of positions is compared there.
MIXTURES = {"mixtral", "gpt-oss", "deepseek-v3"}


def compiled(folder: Path, checkpoint: Path, dtype: str, quant: str = "f32") -> Path:
    """An artifact for this GPU, compiled by a process that imports triton for compiling."""
    assert CAPABILITY is not None
    path = folder / f"{dtype}-{quant}.gw"
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    target = f"cuda:sm_{CAPABILITY // 10}0"
    subprocess.run(
        [sys.executable, "-m", "graphwright", "compile", str(checkpoint), "-o", str(path),
         "--target", target, "--dtype", dtype, "--quant", quant, "--chunk", "64", "--no-check",
         "--quiet"],
        env=environment, check=True,
    )  # fmt: skip
    return path


@pytest.mark.parametrize("dtype", ERROR)
@pytest.mark.parametrize("name", MODELS)
def test_models_against_eager(name: str, dtype: str, tmp_path: Path) -> None:
    checkpoint = save_tiny(name, tmp_path / "checkpoint")
    engine = Engine(compiled(tmp_path, checkpoint, dtype), context=128)
    eager = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    prompts = [random_tokens(n, seed=n).tolist() for n in (70, 1, 13)]
    params = SamplingParams(temperature=0.0, max_tokens=16, ignore_eos=True)
    for prompt, output in zip(
        prompts, engine.generate(prompts, params, return_logits=True), strict=True
    ):
        want = continued_logits(eager, prompt, output.token_ids)
        assert output.logits is not None
        error = (torch.from_numpy(output.logits.copy()) - want).abs().amax(-1)
        if name in MIXTURES and dtype != "f32":
            assert float(error.median()) <= ERROR["bf16"] * float(want.std())
        else:
            assert float(error.amax()) <= ERROR[dtype] * float(want.std())


@pytest.mark.parametrize("recipe", ["w8", "w4g128", "w4g32z"])
@pytest.mark.parametrize("dtype", ["bf16", "f16"])
def test_integer_weights_against_eager_with_what_they_stand_for(
    dtype: str, recipe: str, tmp_path: Path
) -> None:
    """Prompts of one batch take products of many rows, decoding those of few; one of each alone."""
    checkpoint = save_tiny("llama", tmp_path / "checkpoint")
    engine = Engine(compiled(tmp_path, checkpoint, dtype, recipe), context=128)
    eager = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    round_weights(eager, recipe)
    params = SamplingParams(temperature=0.0, max_tokens=16, ignore_eos=True)
    for lengths in ((70, 1, 13), (40,), (3, 5, 2, 9, 4, 6, 1, 2, 3, 8)):
        prompts = [random_tokens(n, seed=n).tolist() for n in lengths]
        outputs = engine.generate(prompts, params, return_logits=True)
        for prompt, output in zip(prompts, outputs, strict=True):
            want = continued_logits(eager, prompt, output.token_ids)
            assert output.logits is not None
            error = (torch.from_numpy(output.logits.copy()) - want).abs().amax()
            assert float(error) <= ERROR[dtype] * float(want.std())


@pytest.mark.parametrize("dtype", ERROR)
def test_contexts_of_several_parts_against_eager(dtype: str, tmp_path: Path) -> None:
    """Keys of a token in up to six parts; alone, and among many, where a step asks for fewer keys
    ahead."""
    checkpoint = save_tiny("llama", tmp_path / "checkpoint", max_position_embeddings=1024)
    engine = Engine(compiled(tmp_path, checkpoint, dtype), context=1024, max_sequences=64)
    eager = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    params = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)
    prompts = [random_tokens(n, seed=n).tolist() for n in (700, 300, *[5] * 60)]
    together = engine.generate(prompts, params, return_logits=True)
    for prompt, output in zip(prompts[:3], together, strict=False):
        [alone] = engine.generate([prompt], params, return_logits=True)
        for each in (output, alone):
            want = continued_logits(eager, prompt, each.token_ids)
            assert each.logits is not None
            error = (torch.from_numpy(each.logits.copy()) - want).abs().amax()
            assert float(error) <= ERROR[dtype] * float(want.std())


@pytest.mark.parametrize("dtype", ERROR)
@pytest.mark.parametrize("name", ["mamba", "mamba2", "qwen3_next", "recurrent_gemma"])
def test_recurrent_models_against_eager(name: str, dtype: str, tmp_path: Path) -> None:
    """Alone and together: slots in front of the caches, and sequences that take over others'."""
    checkpoint = tmp_path / "checkpoint"
    tiny_decoder(name).save_pretrained(checkpoint)  # type: ignore[operator]
    engine = Engine(compiled(tmp_path, checkpoint, dtype), context=128, max_sequences=2)
    eager = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    prompts = [random_tokens(n, seed=n, vocab_size=100).tolist() for n in (70, 1, 13, 30)]
    params = SamplingParams(temperature=0.0, max_tokens=16, ignore_eos=True)
    for prompt, output in zip(
        prompts, engine.generate(prompts, params, return_logits=True), strict=True
    ):
        want = continued_logits(eager, prompt, output.token_ids)
        assert output.logits is not None
        error = (torch.from_numpy(output.logits.copy()) - want).abs().amax(-1)
        found = error.median() if name == "qwen3_next" and dtype != "f32" else error.amax()
        assert float(found) <= ERROR[dtype] * float(want.std())


def test_a_replayed_graph_gives_what_its_launches_do(tmp_path: Path) -> None:
    artifact = Artifact.open(compiled(tmp_path, save_tiny("llama", tmp_path / "c"), "bf16"))
    params = SamplingParams(temperature=0.0, max_tokens=32, ignore_eos=True)
    outputs = [
        Engine(artifact, library=CudaLibrary(artifact, capture=capture)).generate([[5, 9]], params)
        for capture in (True, False)
    ]
    assert outputs[0][0].token_ids == outputs[1][0].token_ids


def test_drawing_on_the_gpu_is_drawing_from_its_logits(tmp_path: Path) -> None:
    """By the host, from the rows that the GPU drew from: the same tokens."""
    engine = Engine(compiled(tmp_path, save_tiny("llama", tmp_path / "c"), "bf16"), context=64)
    common: dict[str, Any] = {"max_tokens": 24, "ignore_eos": True}
    params = [
        SamplingParams(temperature=0.0, **common),
        SamplingParams(temperature=2.0, top_k=64, seed=7, **common),
        SamplingParams(temperature=1.5, top_k=20, top_p=0.9, min_p=0.01, seed=8, **common),
        SamplingParams(temperature=1.0, seed=9, **common),
        SamplingParams(temperature=5.0, top_p=0.99, seed=10, **common),
    ]
    prompts = [[5, 7], [3], [11, 2, 9], [8], [6, 6]]
    few = engine.generate(prompts, params)
    whole = engine.generate(prompts, params, return_logits=True)
    for prompt, each, drawn, output in zip(prompts, params, few, whole, strict=True):
        assert drawn.token_ids == output.token_ids and output.logits is not None
        sampler = Sampler(each.resolve({}), engine.plan.vocab_size, prompt)
        assert [sampler.choose(row) for row in output.logits] == output.token_ids


def test_compute_sanitizer_finds_nothing(tmp_path: Path) -> None:
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        pytest.skip("compute-sanitizer of the CUDA toolkit is not installed")
    checkpoint = save_tiny("llama", tmp_path / "checkpoint", max_position_embeddings=512)
    path = compiled(tmp_path, checkpoint, "bf16")
    done = subprocess.run(
        [tool, "--error-exitcode", "9", sys.executable, "-m", "graphwright", "run", str(path),
         "--prompt-ids", ",".join(["1,2,3"] * 100), "--max-tokens", "4"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_steps_that_overlap_say_what_others_do(dtype: str, tmp_path: Path) -> None:
    """Alone, to the last token, and to one of its own that ends it; and together, where it is known
    who ends when, so that all steps have the same rows."""
    artifact = Artifact.open(compiled(tmp_path, save_tiny("llama", tmp_path / "c"), dtype))
    one, other = (
        Engine(artifact, context=128, library=CudaLibrary(artifact, overlaps=overlaps))
        for overlaps in (True, False)
    )
    prompts = [random_tokens(n, seed=n).tolist() for n in (70, 1, 13, 5)]
    free = SamplingParams(temperature=0.0, max_tokens=32, ignore_eos=True)
    for prompt in prompts:
        [free_of] = other.generate([prompt], free)
        assert one.generate([prompt], free)[0].token_ids == free_of.token_ids
        for engine in (one, other):
            engine.eos_ids = frozenset([free_of.token_ids[9]])
        ends = SamplingParams(temperature=0.0, max_tokens=32)
        [ended] = one.generate([prompt], ends)
        assert ended.token_ids == other.generate([prompt], ends)[0].token_ids
        assert len(ended.token_ids) <= 10
    lengths = [
        SamplingParams(temperature=0.0, max_tokens=n, ignore_eos=True) for n in (9, 3, 30, 1)
    ]
    found, want = (
        [each.token_ids for each in engine.generate(prompts, lengths)] for engine in (one, other)
    )
    assert found == want
