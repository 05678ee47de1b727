"""The runtime over compiled code: one tiny model, in this process and in torch-free ones."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import random_tokens, tiny_model

import graphwright
from graphwright.inspector import Machine, profile_table
from graphwright.runtime.engine import Engine
from graphwright.runtime.errors import RequestError
from graphwright.runtime.library import NativeLibrary
from graphwright.runtime.profile import profile
from graphwright.runtime.sampling_params import SamplingParams
from graphwright.runtime.self_test import self_test

GREEDY = SamplingParams(temperature=0, max_tokens=10, ignore_eos=True)
CHUNK = 16


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama of two layers, with prefill steps of 16 tokens."""
    path = tmp_path_factory.mktemp("native") / "tiny.gw"
    return graphwright.compile(tiny_model("llama"), chunk=CHUNK, check=False).save(path)


@pytest.fixture(scope="module")
def engine(artifact: Path) -> Engine:
    return Engine(artifact, max_sequences=3, context=96)


def prompts() -> list[list[int]]:
    return [random_tokens(length, seed=length).tolist() for length in (1, 8, 40, 5, 23)]


def test_logits_are_those_of_the_eager_model(engine: Engine) -> None:
    ids = random_tokens(60, seed=1)
    with torch.no_grad():
        expected = tiny_model("llama")(input_ids=ids[None], use_cache=False).logits[0].numpy()
    found = engine.logits(ids.tolist())
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


def test_log_probabilities_of_prompts_are_those_of_the_eager_model(engine: Engine) -> None:
    params = SamplingParams(temperature=0, max_tokens=2, ignore_eos=True, prompt_logprobs=2)
    for prompt, output in zip(prompts(), engine.generate(prompts(), params), strict=True):
        with torch.no_grad():
            logits = tiny_model("llama")(torch.tensor([prompt]), use_cache=False).logits[0]
        rows = torch.log_softmax(logits.double(), -1)
        assert output.prompt_logprobs is not None and len(output.prompt_logprobs) == len(prompt)
        for place, found in enumerate(output.prompt_logprobs[1:], 1):
            assert found.logprob == pytest.approx(float(rows[place - 1, prompt[place]]), abs=1e-4)
            best = rows[place - 1].topk(2).values.tolist()
            assert [each for _, each in found.top] == pytest.approx(best, abs=1e-4)


def test_a_ragged_batch_gives_what_each_prompt_gives_alone(engine: Engine) -> None:
    together = engine.generate(prompts(), GREEDY, return_logits=True)
    for prompt, output in zip(prompts(), together, strict=True):
        (alone,) = engine.generate([prompt], GREEDY, return_logits=True)
        assert alone.token_ids == output.token_ids
        assert output.logits is not None and alone.logits is not None
        assert np.allclose(output.logits, alone.logits, rtol=1e-4, atol=1e-4)


def test_cached_decoding_gives_the_logits_of_one_pass(engine: Engine) -> None:
    (output,) = engine.generate([prompts()[2]], GREEDY, return_logits=True)
    whole = engine.logits(prompts()[2] + output.token_ids[:-1])
    assert output.logits is not None
    assert np.allclose(output.logits, whole[39:], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("threads", [1, 3])
def test_the_number_of_threads_does_not_matter(
    artifact: Path, engine: Engine, threads: int
) -> None:
    ids = random_tokens(30, seed=2).tolist()
    other = Engine(artifact, threads=threads, context=96)
    assert np.allclose(other.logits(ids), engine.logits(ids), rtol=1e-5, atol=1e-5)


def test_the_golden_tokens_come_back(engine: Engine) -> None:
    assert self_test(engine).passed


def test_the_arena_of_the_plan_is_enough(artifact: Path) -> None:
    """Bytes behind the planned arena, cache and logits stay as they were."""
    engine = Engine(artifact, context=96, max_sequences=3)
    buffers = engine._buffers
    guarded = {}
    for name in ("arena", "kv", "logits"):
        array = getattr(buffers, name)
        memory = np.full(array.nbytes + 8192, 0xAB, np.uint8)
        start = -memory.ctypes.data % 4096
        inside = memory[start : start + array.nbytes]
        inside[:] = 0
        object.__setattr__(buffers, name, inside.view(array.dtype).reshape(array.shape))
        guarded[name] = (memory, start, array.nbytes)
    assert isinstance(engine._library, NativeLibrary)
    engine.generate(prompts(), GREEDY)
    for name, (memory, start, size) in guarded.items():
        assert (memory[:start] == 0xAB).all() and (memory[start + size :] == 0xAB).all(), name


def test_without_torch_and_tvm(artifact: Path) -> None:
    code = (
        "import sys\n"
        "sys.modules['torch'] = sys.modules['tvm'] = sys.modules['tvm_ffi'] = None\n"
        "from graphwright.__main__ import main\n"
        "code = main(sys.argv[1:])\n"
        "rooms = ('frontend', 'ir', 'passes', 'backends', 'inspector')\n"
        "assert not [room for room in rooms if f'graphwright.{room}' in sys.modules]\n"
        "assert not {'transformers', 'rich'} & set(sys.modules)\n"
        "sys.exit(code)"
    )
    arguments = ["run", str(artifact), "--prompt-ids", "3,17", "--max-tokens", "6", "--json"]
    result = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    expected = graphwright.load(artifact).generate([[3, 17]], SamplingParams(max_tokens=6))
    assert found["outputs"][0]["token_ids"] == expected[0].token_ids


def test_where_torch_is_installed_it_stays_unimported(artifact: Path) -> None:
    code = (
        "import sys, graphwright\n"
        "engine = graphwright.load(sys.argv[1])\n"
        "engine.generate([[1, 2]], graphwright.SamplingParams(max_tokens=2))\n"
        "print(sorted({'torch', 'tvm', 'rich', 'transformers'} & set(sys.modules)))\n"
        "import tvm, torch\n"
        "print(tvm.runtime.tensor([1.0]).numpy())"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(artifact)], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == "[]\n[1.]\n"


def test_the_calling_thread_keeps_its_cpus(artifact: Path) -> None:
    code = (
        "import os, sys, graphwright\n"
        "before = os.sched_getaffinity(0)\n"
        "engine = graphwright.load(sys.argv[1], threads=2)\n"
        "engine.generate([[1, 2]], graphwright.SamplingParams(max_tokens=2))\n"
        "assert os.sched_getaffinity(0) == before\n"
        "print(len(os.listdir('/proc/self/task')))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(artifact)], capture_output=True, text=True
    )
    assert (result.returncode, result.stdout) == (0, "2\n"), result.stderr


def test_steps_may_be_called_from_another_thread(engine: Engine) -> None:
    from concurrent.futures import ThreadPoolExecutor

    expected = engine.generate(prompts(), GREEDY)
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(engine.generate, prompts(), GREEDY).result()
    assert [each.token_ids for each in found] == [each.token_ids for each in expected]


def test_steps_with_clocks_give_the_same_tokens_and_times_that_follow_each_other(
    artifact: Path,
) -> None:
    plain, clocked = (Engine(artifact, max_sequences=1, context=96, threads=2) for _ in range(2))
    (expected,) = plain.generate([prompts()[2]], GREEDY)
    library = clocked.library
    assert isinstance(library, NativeLibrary)
    phases = clocked.artifact.json("phases.json")["decode"]
    marks = np.zeros((2, 1 + 2 * len(phases)), np.int64)
    library.mark(marks)
    (found,) = clocked.generate([prompts()[2]], GREEDY)
    assert found.token_ids == expected.token_ids
    assert (marks > 0).all() and (np.diff(marks, axis=1) >= 0).all()
    library.mark(None)
    before = marks.copy()
    clocked.generate([prompts()[0]], GREEDY)
    assert (marks == before).all()


def test_a_profile_has_every_phase_and_leaves_the_engine_as_it_was(artifact: Path) -> None:
    engine = Engine(artifact, max_sequences=1, context=96, threads=1)
    facts = engine.artifact.json("phases.json")
    found = profile(engine, CHUNK, steps=6)
    for entry, tokens, before in (("prefill", CHUNK, 0), ("decode", 1, CHUNK + 1)):
        measured = found[entry]
        assert (measured.tokens, measured.before) == (tokens, before)
        assert measured.phases.shape == (len(facts[entry]),)
        assert (measured.phases >= 0).all() and 0 < measured.outside < 1
        assert (measured.waits == 0).all()  # one thread waits for nobody
        text = profile_table(facts, measured, Machine(bandwidth=10, float32=100, int8=200))
        assert "layer 1" in text and f"{len(facts[entry]):5d}" in text
    assert engine.generate([prompts()[0]], GREEDY)[0].token_ids
    with pytest.raises(RequestError, match="a prompt of 9 to 16 tokens"):
        profile(engine, 4, steps=6)
    with pytest.raises(RequestError, match="3 decode steps or more, not 2"):
        profile(engine, CHUNK, steps=2)
