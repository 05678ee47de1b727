"""Programs and whole models with recurrences lowered for a GPU, run by Triton's interpreter."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_recurrent_programs import STEPS, recurrent

from graphwright.ir.errors import BackendError
from graphwright.ir.interpreter import run_program
from graphwright.ir.paging import PagedCache
from graphwright.ir.program import Program
from graphwright.ir.tolerance import check_close

pytest.importorskip("triton")

from interpreted_program import InterpretedProgram
from test_triton_models import planned
from tiny_decoders import tiny_decoder
from tiny_models import random_tokens

from graphwright.backends.triton.build import GpuOptions, lower_program

MORE = ["mamba", "mamba2", "recurrent_gemma"]  # the first two are in other files here, too
MODELS = ["qwen3_next", *(pytest.param(name, marks=pytest.mark.slow) for name in MORE)]


@pytest.fixture(scope="module")
def program() -> Program:
    return recurrent(["delta-rule", "window", "channels", "two-states"])


def test_sequences_come_and_go(program: Program) -> None:
    torch.manual_seed(1)
    lowered = lower_program(program, GpuOptions("f32"))
    compiled, cache = InterpretedProgram(lowered), PagedCache(program)
    numbers = [cache.start() for _ in range(3)]
    for counts in ((1, 4, 0), (1, 1, 2), (9, 1, 17), (0, 0, 1), (1, 1, 1)):
        batch = [(i, torch.randint(0, 50, (n,))) for i, n in enumerate(counts) if n]
        inputs = cache.inputs([(numbers[i], tokens) for i, tokens in batch])
        got = compiled.step([(i, tokens.tolist()) for i, tokens in batch])
        check_close(got, run_program(program, inputs))
    cache.finish(numbers[1])
    numbers[1] = cache.start()
    compiled.lengths[1] = 0
    tokens = torch.randint(0, 50, (3,))
    want = run_program(program, cache.inputs([(numbers[1], tokens)]))
    check_close(compiled.step([(1, tokens.tolist())]), want)


def test_the_plan_says_where_states_lie(program: Program) -> None:
    lowered = lower_program(program, GpuOptions("bf16"))
    kv = lowered.plan["kv"]
    assert [each["offset"] for each in kv["recurrent"]] == [0, 1920, 2112, 2304]
    assert kv["slot_bytes"] == 2432 and (kv["block_bytes"], kv["states"]) == (0, [])
    scans = [
        launch for launch in lowered.buckets[-1].launches if launch.kernel.name.startswith("scan")
    ]
    states = [
        operand
        for launch in scans
        for (name, _), operand in zip(launch.kernel.pointers, launch.operands, strict=True)
        if name == "state"
    ]
    assert [(each.parameter, each.offset) for each in states] == [
        ("kv", -2432), ("kv", -512), ("kv", -320), ("kv", -128)
    ]  # fmt: skip
    assert {launch.kernel.name for launch in scans} <= set(lowered.sources)
    assert all(dict(launch.kernel.pointers)["out"] == "bfloat16" for launch in scans)


@pytest.mark.parametrize("name", MODELS)
def test_models_equal_eager_token_by_token(name: str) -> None:
    model: Any = tiny_decoder(name)
    lowered = lower_program(planned(model), GpuOptions("f32"))
    assert any(kernel.name.startswith("scan") for kernel in lowered.kernels())
    texts = [random_tokens(14, seed=seed, vocab_size=100).tolist() for seed in range(2)]
    with torch.no_grad():
        wants = [model(torch.tensor([text]), use_cache=False).logits[0] for text in texts]
    steps = InterpretedProgram(lowered)
    batches = (
        ((0, 0, 9),), ((0, 9, 10),), ((1, 0, 1), (0, 10, 11)), ((0, 11, 12), (1, 1, 6)),
        ((1, 6, 7), (0, 12, 13)),
    )  # fmt: skip
    for sequences in batches:
        got = steps.step([(i, texts[i][start:end]) for i, start, end in sequences])
        check_close(got, torch.cat([wants[i][start:end] for i, start, end in sequences]))


def test_a_step_that_cannot_be_lowered_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    bad = STEPS["channels"].replace("aten.add.Tensor", "aten.igamma.default")
    monkeypatch.setitem(STEPS, "bad", bad)
    with pytest.raises(BackendError, match=r"the recurrence 'cached_scan_default'.*igamma"):
        lower_program(recurrent(["bad"]), GpuOptions("f32"))
