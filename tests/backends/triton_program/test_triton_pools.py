"""Layers that see everything beside layers with windows, lowered for a GPU: two pools of blocks,
and of the one with windows only what is in reach is there."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import continued_logits, random_tokens, save_tiny, tiny_model

from graphwright.__main__ import main
from graphwright.ir.tolerance import check_close
from graphwright.runtime.cuda.library import CudaLibrary
from graphwright.runtime.engine import Engine
from graphwright.runtime.sampling_params import SamplingParams

pytest.importorskip("triton")

from interpreted_program import InterpretedProgram
from ptx_harness import run_launch
from test_triton_artifact import CountingDriver, compiled, stand_in
from test_triton_models import planned

from graphwright.backends.triton.build import GpuOptions, lower_program
from graphwright.backends.triton.launches import Launch

LAYERS = ["full_attention", "sliding_attention"]


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("gemma2", {}),
        ("gpt-oss", {"layer_types": LAYERS}),  # the window is in the last layer
        pytest.param("gemma3", {"num_layers": 3}, marks=pytest.mark.slow),
    ],
)
def test_long_texts_equal_eager_where_windows_keep_what_is_in_reach(
    name: str, config: dict[str, Any]
) -> None:
    """Windows of 8 tokens, blocks of 16: prompts in chunks, single tokens, ragged batches."""
    model: Any = tiny_model(name, **config)
    lowered = lower_program(planned(name, **config), GpuOptions("f32"))
    assert [pool.reach.span for pool in lowered.kv.pools] == [None, 8]
    texts = [random_tokens(60, seed=seed).tolist() for seed in range(3)]
    with torch.no_grad():
        wants = [model(torch.tensor([text]), use_cache=False).logits[0] for text in texts]
    program = InterpretedProgram(lowered)

    def check(*parts: tuple[int, int]) -> None:
        """The next tokens of sequences: (its number, how many)."""
        begins = [program.lengths[number] for number, _ in parts]
        batch = [
            (number, texts[number][begin : begin + count])
            for (number, count), begin in zip(parts, begins, strict=True)
        ]
        want = [
            wants[number][begin : begin + count]
            for (number, count), begin in zip(parts, begins, strict=True)
        ]
        check_close(program.step(batch), torch.cat(want))

    for _ in range(3):
        check((0, 16))
    check((0, 1))
    check((1, 9), (0, 1), (2, 6))
    for _ in range(2):
        check((2, 12), (1, 3), (0, 1))
    check((0, 1), (1, 1), (2, 1))
    assert program.lengths == [53, 16, 31]
    assert any(not table.all() for table in program.tables[1:])


def test_a_pool_costs_no_launch() -> None:
    """The tables come with the other inputs, and places in both pools are found at once."""
    one, two = (
        lower_program(planned("gemma2", layer_types=[kind, "full_attention"]), GpuOptions("bf16"))
        for kind in ("full_attention", "sliding_attention")
    )
    assert (len(one.kv.pools), len(two.kv.pools)) == (1, 2)

    def names(launches: tuple[Launch, ...]) -> list[str]:
        return [launch.kernel.name.rpartition("_")[0] for launch in launches]

    for single, double in zip(one.buckets, two.buckets, strict=True):
        assert names(single.launches) == names(double.launches)


def test_compiled_code_finds_both_pools() -> None:
    """Every launch of a step as its PTX, as test_triton_compiled.py has it."""
    model: Any = tiny_model("gemma2")
    lowered = lower_program(planned("gemma2"), GpuOptions("f16"))
    program = InterpretedProgram(lowered, run=partial(run_launch, capability=80))
    text = random_tokens(34).tolist()
    with torch.no_grad():
        want = model(torch.tensor([text]), use_cache=False).logits[0]
    other = random_tokens(4, seed=1).tolist()
    for start, end in ((0, 16), (16, 32), (32, 33)):
        got = program.step([(0, text[start:end])])
        assert (got - want[start:end]).abs().amax() <= 0.03 * want.std()
    got = program.step([(1, other), (0, text[33:34])], rows=[4])
    assert (got - want[33:]).abs().amax() <= 0.03 * want.std()


def test_steps_that_overlap_in_an_engine_with_two_pools(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Over a stand-in for the driver: texts longer than the small pool, the second of which begins
    as the first did, and goes on where only its window is left."""
    checkpoint = save_tiny("gemma2", tmp_path / "checkpoint")
    artifact = compiled(checkpoint)
    driver = CountingDriver(stand_in(checkpoint, artifact))
    library = CudaLibrary(artifact, driver)
    engine = Engine(artifact, context=128, max_sequences=2, library=library, prefix_cache=True)
    sizes = [pool.blocks for pool in engine._pool.pools]
    assert sizes == [2 * 8, 2 * 3 + 64 // 16], "a step of 64 tokens, and two windows"
    model: Any = tiny_model("gemma2")
    params = SamplingParams(temperature=0.0, max_tokens=20, ignore_eos=True)
    prompts = [random_tokens(n, seed=n).tolist() for n in (37, 5)]
    outputs = engine.generate(prompts, params)
    prompts += [[*prompts[0], *outputs[0].token_ids, 7, 9]]
    request = engine.submit(prompts[2], replace(params, max_tokens=6))
    while not request.finished:
        engine.step()
    assert request.sequence.reused == (37 + 19) // 16 * 16
    said = [*(output.token_ids for output in outputs), request.generated]
    for prompt, tokens in zip(prompts, said, strict=True):
        assert tokens == continued_logits(model, prompt, tokens).argmax(-1).tolist()
    assert engine._pool.free == engine._pool.blocks
    size = ["--max-sequences", "2", "--context", "128", "--json"]
    assert main(["plan", str(artifact.path), *size]) == 0
    assert json.loads(capsys.readouterr().out)["total_bytes"] == driver.taken
