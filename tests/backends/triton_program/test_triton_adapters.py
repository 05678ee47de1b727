"""A file for GPUs with adapters: compiled here, run by the engine over a stand-in driver."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft_adapters import peft_logits, save_adapter
from tiny_models import random_tokens, save_tiny

from graphwright.frontend.checkpoint import capture_checkpoint
from graphwright.ir.tolerance import check_close
from graphwright.passes.pipeline import PipelineOptions, pipeline
from graphwright.passes.running import run_passes
from graphwright.runtime.artifact import Artifact
from graphwright.runtime.cuda.driver import Driver
from graphwright.runtime.cuda.library import CudaLibrary
from graphwright.runtime.engine import Engine
from graphwright.runtime.sampling_params import SamplingParams

pytest.importorskip("triton")

from fake_cuda import FakeCuda

from graphwright.backends.triton.build import GpuOptions, lower_program

CHUNK = 16


def compiled(base: Path, adapters: dict[str, Path]) -> Artifact:
    """By the command line, in a process that imports triton for compiling."""
    path = base.parent / "model.gw"
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    named = [f"--adapter={name}={directory}" for name, directory in adapters.items()]
    done = subprocess.run(
        [sys.executable, "-m", "graphwright", "compile", str(base), "-o", str(path), "--quiet",
         "--target", "cuda:sm_80", "--dtype", "f32", "--chunk", str(CHUNK), *named],
        capture_output=True, text=True, env=environment, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return Artifact.open(path)


def stand_in(base: Path, adapters: dict[str, Path], artifact: Artifact) -> FakeCuda:
    """The kernels of the same program, lowered here: they have the same names."""
    program = capture_checkpoint(base, adapters=adapters)
    run_passes(program, pipeline(PipelineOptions(decode_tokens=64, chunk=CHUNK)))
    kernels = {each.name: each for each in lower_program(program, GpuOptions("f32")).kernels()}
    [(chip, names)] = artifact.json("gpu/launches.json")["kernels"].items()
    assert {name.partition("_u")[0] for name in names} == set(kernels)
    cubins = {
        artifact.read(f"gpu/{chip}/{name}.cubin"): kernels[name.partition("_u")[0]]
        for name in names
    }
    return FakeCuda(cubins, capability=(8, 0))


def test_requests_with_different_adapters_in_steps_that_overlap(tmp_path: Path) -> None:
    base = save_tiny("llama", tmp_path / "base", num_layers=1)
    adapters = {
        "all": save_adapter(base, tmp_path / "all", 1, target_modules="all-linear"),
        "few": save_adapter(
            base, tmp_path / "few", 2, r=9, target_modules=["q_proj", "down_proj", "lm_head"]
        ),
    }
    artifact = compiled(base, adapters)
    assert [each["name"] for each in artifact.json("plan.json")["adapters"]["entries"]] == [
        "all", "few",
    ]  # fmt: skip
    library = CudaLibrary(artifact, Driver(stand_in(base, adapters, artifact)))
    engine = Engine(artifact, context=64, library=library)
    prompts = [random_tokens(n, seed=n).tolist() for n in (19, 3, 5)]
    names = ["few", None, "all"]
    for params, logits in (
        (SamplingParams(temperature=0, max_tokens=3, ignore_eos=True), True),
        (SamplingParams(temperature=0, max_tokens=4, ignore_eos=True), False),
    ):
        outputs = engine.generate(prompts, params, adapter=names, return_logits=logits)
        for prompt, name, output in zip(prompts, names, outputs, strict=True):
            tokens = [*prompt, *output.token_ids[:-1]]
            want = peft_logits(base, adapters.get(name or ""), tokens)[len(prompt) - 1 :]
            assert output.token_ids == want.argmax(-1).tolist()
            if output.logits is not None:
                check_close(torch.from_numpy(output.logits.copy()), want)


def test_what_is_added_to_logits_is_float32(tmp_path: Path) -> None:
    base = save_tiny("llama", tmp_path / "base", num_layers=1)
    head = save_adapter(base, tmp_path / "head", 1, target_modules=["lm_head", "o_proj"])
    program = capture_checkpoint(base, adapters={"head": head})
    run_passes(program, pipeline(PipelineOptions(decode_tokens=4, chunk=CHUNK)))
    lowered = lower_program(program, GpuOptions("bf16"))
    found = {
        tuple(dict(launch.kernel.pointers)[name] for name in ("residual", "out"))
        for bucket in lowered.buckets
        for launch in bucket.launches
        if "residual" in dict(launch.kernel.pointers) and "order" in dict(launch.kernel.pointers)
    }
    assert found == {("bfloat16", "bfloat16"), ("float32", "float32")}
