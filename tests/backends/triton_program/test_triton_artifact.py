"""Artifacts for GPUs: compiled here without one, and run by the engine over a stand-in driver."""

from __future__ import annotations

import ctypes
import json
import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_decoders import tiny_decoder
from tiny_models import continued_logits, random_tokens, save_tiny
from transformers import AutoModelForCausalLM

import graphwright
from graphwright.__main__ import main
from graphwright.frontend.checkpoint import capture_checkpoint
from graphwright.ir.errors import BackendError
from graphwright.ir.tolerance import check_close
from graphwright.passes.pipeline import PipelineOptions, pipeline
from graphwright.passes.running import run_passes
from graphwright.runtime.artifact import Artifact
from graphwright.runtime.cuda.driver import Driver
from graphwright.runtime.cuda.library import CudaLibrary
from graphwright.runtime.cuda.program import LAUNCHES, Program
from graphwright.runtime.dlpack import DeviceTensor
from graphwright.runtime.engine import Engine
from graphwright.runtime.errors import ArtifactError, RequestError
from graphwright.runtime.footprint import Footprint
from graphwright.runtime.sampler import Sampler
from graphwright.runtime.sampling_params import SamplingParams

pytest.importorskip("triton")

from fake_cuda import FakeCuda

from graphwright.backends.triton.build import GpuOptions, lower_program
from graphwright.backends.triton.chips import chips_of

CHUNK = 16


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    """graphwright, in a process that imports triton for compiling."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, "-m", "graphwright", *map(str, arguments)],
        capture_output=True, text=True, env=environment, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("llama", tmp_path_factory.mktemp("model") / "checkpoint", num_layers=1)


def compiled(checkpoint: Path, chip: str = "sm_80") -> Artifact:
    path = checkpoint.parent / "model.gw"
    done = command(
        "compile", checkpoint, "-o", path, "--target", f"cuda:{chip}", "--dtype", "f32",
        "--chunk", CHUNK, "--no-check", "--quiet",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return Artifact.open(path)


@pytest.fixture(scope="module")
def artifact(checkpoint: Path) -> Artifact:
    return compiled(checkpoint)


@pytest.fixture(scope="module")
def driver(checkpoint: Path, artifact: Artifact) -> FakeCuda:
    return stand_in(checkpoint, artifact)


def stand_in(checkpoint: Path, artifact: Artifact) -> FakeCuda:
    """The kernels of the same program, lowered here: they have the same names."""
    program = capture_checkpoint(checkpoint)
    run_passes(program, pipeline(PipelineOptions(decode_tokens=64, chunk=CHUNK)))
    lowered = lower_program(program, GpuOptions("f32"))
    kernels = {kernel.name: kernel for kernel in lowered.kernels()}
    [(chip, names)] = artifact.json("gpu/launches.json")["kernels"].items()
    assert {name.partition("_u")[0] for name in names} == set(kernels)
    cubins = {
        artifact.read(f"gpu/{chip}/{name}.cubin"): kernels[name.partition("_u")[0]]
        for name in names
    }
    return FakeCuda(cubins, capability=(int(chip[3]), int(chip[4])))


def test_it_holds_code_launches_and_sources(artifact: Artifact) -> None:
    launches = artifact.json("gpu/launches.json")
    assert artifact.manifest.target == "cuda:sm_80"
    assert [bucket["tokens"] for bucket in launches["entries"]["decode"]] == [
        1,
        2,
        4,
        8,
        16,
        32,
        64,
    ]
    assert [bucket["tokens"] for bucket in launches["entries"]["prefill"]] == [CHUNK]
    for name, kernel in launches["kernels"]["sm_80"].items():
        assert artifact.read(f"gpu/sm_80/{name}.cubin")[:4] == b"\x7fELF"
        assert kernel["scratch_pointers"] == 2 and kernel["stack"] <= 64
        assert kernel["early"] is False
    sources = [name for name in artifact.names if name.startswith("gpu/source/")]
    assert sources and all(b"@triton.jit" in artifact.read(name) for name in sources)
    ends = {"batch": 32, "weights": len(artifact.view("weights.bin"))}
    for entry in launches["entries"].values():
        for bucket in entry:
            for _, _, operands in bucket["launches"] + bucket["largest"] + bucket["drawn"]:
                assert all(o < ends.get(region, 1 << 62) for region, o in operands)


def test_every_view_of_it_can_be_inspected(artifact: Artifact) -> None:
    views: tuple[list[str], ...] = (
        [], ["--passes"], ["--graph", "last"], ["--ledger"], ["--json"], ["--memory"],
        ["--memory", "--all"],
    )  # fmt: skip
    for view in views:
        done = command("inspect", artifact.path, *view)
        assert done.returncode == 0 and done.stdout.strip(), f"{view}: {done.stderr}"
    assert re.search(r"\n  linear\S* .*\|.*█", done.stdout)
    assert "bytes, copied to the GPU" in done.stdout
    machine = ("--bandwidth", 30, "--gops", 100, 400)
    done = command("inspect", artifact.path, "--kernels", *machine)
    assert done.returncode == 1
    assert done.stderr == (
        "Error: there are predictions for CPUs alone; this artifact is for cuda:sm_80. --ledger "
        "says which kernels it has.\n"
    )


def test_the_engine_generates_what_eager_does(
    checkpoint: Path, artifact: Artifact, driver: FakeCuda
) -> None:
    check_against_eager(checkpoint, artifact, driver)
    assert not driver.early


def test_recurrent_states_lie_in_front_of_the_caches(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    tiny_decoder("mamba").save_pretrained(checkpoint)  # type: ignore[operator]
    artifact = compiled(checkpoint, "sm_90")
    kv = artifact.json("plan.json")["kv"]
    assert kv["slot_bytes"] > 0 == kv["block_bytes"]
    assert any(name.startswith("gpu/source/scan_") for name in artifact.names)
    driver = stand_in(checkpoint, artifact)
    check_against_eager(checkpoint, artifact, driver)
    check_next_turns(checkpoint, artifact, driver)


def check_next_turns(checkpoint: Path, artifact: Artifact, driver: FakeCuda) -> None:
    """Each begins with the states that were copied when the text before it ended, in the order of
    the stream; another text has used the only slot in between. Memory is that of the plan."""
    counting = CountingDriver(driver)
    engine = Engine(
        artifact, context=64, max_sequences=1, prefix_cache=True, snapshots=3,
        library=CudaLibrary(artifact, counting),
    )  # fmt: skip
    eager = AutoModelForCausalLM.from_pretrained(checkpoint).eval()
    params = SamplingParams(temperature=0.0, max_tokens=3, ignore_eos=True)
    text = random_tokens(19, seed=19).tolist()
    for turn in range(3):
        request = engine.submit(text, params)
        while not request.finished:
            engine.step()
        want = continued_logits(eager, text, request.generated)
        assert request.generated == want.argmax(-1).tolist()
        assert request.sequence.reused == (len(text) - 15 if turn else 0)
        text = [*text, *request.generated, *random_tokens(14, seed=turn).tolist()]
        engine.generate([[turn + 1, 2]], params)
    assert driver.calls.count("copy-within") >= 3 + 2
    assert counting.taken == Footprint(
        engine.plan, Program.read(artifact, 90).counter_bytes, snapshots=3
    ).total(1, 64)


class CountingDriver(Driver):
    """Adds up the device memory that was asked for."""

    taken = 0

    def allocate(self, size: int) -> int:
        self.taken += size
        return super().allocate(size)


def test_a_plan_says_what_lies_in_the_gpu_s_memory(
    checkpoint: Path, artifact: Artifact, driver: FakeCuda, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--target", "cuda:sm_80", "--dtype", "f32", "--chunk", str(CHUNK)]
    for sequences, context in ((1, 64), (5, 33)):
        size = ["--max-sequences", str(sequences), "--context", str(context), "--json"]
        tables = []
        for subject in ([str(checkpoint), *options], [str(artifact.path)]):
            assert main(["plan", *subject, *size]) == 0
            tables.append({**json.loads(capsys.readouterr().out), "model": ""})
        assert tables[0] == tables[1]
        counting = CountingDriver(driver)
        engine = Engine(
            artifact, max_sequences=sequences, context=context,
            library=CudaLibrary(artifact, counting),
        )  # fmt: skip
        engine.generate([[5]], SamplingParams(temperature=0.0, max_tokens=2, ignore_eos=True))
        assert tables[0]["where"] == "gpu"
        assert tables[0]["total_bytes"] == counting.taken


def test_only_kernels_that_wait_begin_early(
    artifact: Artifact, driver: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each launch as its kernel says, one by one and into graphs."""
    found, read = artifact.json(LAUNCHES), Artifact.json
    for name, kernel in found["kernels"]["sm_80"].items():
        kernel["early"] = not name.startswith("gemv")
    monkeypatch.setattr(
        Artifact, "json", lambda self, name: found if name == LAUNCHES else read(self, name)
    )
    library = CudaLibrary(artifact, Driver(driver))
    engine = Engine(artifact, context=64, library=library)
    driver.early.clear()
    driver.launches.clear()
    engine.generate([[5]], SamplingParams(temperature=0.0, max_tokens=3, ignore_eos=True))
    found = behind_inputs(driver)
    assert driver.early == [name for name in found if not name.startswith("gemv")]
    assert 0 < len(driver.early) < len(found)
    driver.early.clear()


def behind_inputs(driver: FakeCuda) -> list[str]:
    """All launches but those right behind a step's inputs, which begin when these are there."""
    names = [name for name, *_ in driver.launches]
    return [
        name
        for before, name in zip(["", *names], names, strict=False)
        if not before.startswith("take_inputs")
    ]


def check_against_eager(checkpoint: Path, artifact: Artifact, driver: FakeCuda) -> None:
    """Logits and tokens of two prompts, the first of which is longer than a chunk."""
    engine = Engine(artifact, context=64, library=CudaLibrary(artifact, Driver(driver)))
    eager = AutoModelForCausalLM.from_pretrained(checkpoint).eval()
    params = SamplingParams(temperature=0.0, max_tokens=4, ignore_eos=True)
    prompts = [random_tokens(n, seed=n).tolist() for n in (19, 3)]
    outputs = engine.generate(prompts, params, return_logits=True)
    for prompt, output in zip(prompts, outputs, strict=True):
        want = continued_logits(eager, prompt, output.token_ids)
        assert output.logits is not None
        check_close(torch.from_numpy(output.logits.copy()), want)
        assert output.token_ids == want.argmax(-1).tolist()


def test_a_bucket_runs_once_is_then_captured_and_replayed(
    artifact: Artifact, driver: FakeCuda
) -> None:
    engine = Engine(artifact, context=64, library=CudaLibrary(artifact, Driver(driver)))
    launches = artifact.json("gpu/launches.json")["entries"]["decode"][0]["launches"]
    params = SamplingParams(temperature=0.0, max_tokens=3, ignore_eos=True)
    driver.calls.clear()
    engine.generate([[5]], params, return_logits=True)
    steps = " ".join(each for each in driver.calls if not each.startswith("wait"))
    first, _, rest = steps.partition("capture")
    assert first.split().count("launch") == len(launches) + 1, "and the largest of the logits"
    assert rest == " cuGraphDestroy replay copy-out mark replay copy-out mark"


def test_greedy_decoding_copies_nothing_to_the_host(
    checkpoint: Path, artifact: Artifact, driver: FakeCuda
) -> None:
    eager = AutoModelForCausalLM.from_pretrained(checkpoint).eval()
    engine = Engine(artifact, context=64, library=CudaLibrary(artifact, Driver(driver)))
    params = SamplingParams(temperature=0.0, max_tokens=3, ignore_eos=True)
    driver.copied.clear()
    [output] = engine.generate([[5, 7]], params)
    assert not driver.copied, "the chosen tokens are written there by the last launch"
    with torch.no_grad():
        tokens = torch.tensor([[5, 7, *output.token_ids]])
        want = eager(tokens, use_cache=False).logits[0, 1:-1].argmax(-1).tolist()
    assert output.token_ids == want


def test_drawing_copies_no_logits_and_draws_what_the_host_would(
    checkpoint: Path, artifact: Artifact, driver: FakeCuda
) -> None:
    """Greedy and drawn sequences in one batch: the tokens that the sampler takes of eager's rows,
    and of our own rows where those are fetched, too."""
    eager = AutoModelForCausalLM.from_pretrained(checkpoint).eval()
    engine = Engine(artifact, context=64, library=CudaLibrary(artifact, Driver(driver)))
    common: dict[str, Any] = {"max_tokens": 3, "ignore_eos": True}
    params = [
        SamplingParams(temperature=0.0, **common),
        SamplingParams(temperature=1.5, top_k=64, seed=7, **common),
        SamplingParams(temperature=0.7, top_k=20, top_p=0.9, min_p=0.01, seed=8, **common),
        SamplingParams(temperature=1.0, seed=9, **common),
        SamplingParams(temperature=2.0, top_p=0.95, seed=10, **common),
    ]
    prompts = [[5, 7], [3], [11, 2, 9], [8], [6, 6]]
    driver.copied.clear()
    outputs = engine.generate(prompts, params)
    assert not driver.copied, "tokens are where they belong"
    wholes = engine.generate(prompts, params, return_logits=True)
    for prompt, each, output, whole in zip(prompts, params, outputs, wholes, strict=True):
        rows = continued_logits(eager, prompt, output.token_ids).numpy()
        assert whole.logits is not None
        for logits in (rows, whole.logits):
            sampler = Sampler(each.resolve({}), engine.plan.vocab_size, prompt)
            assert [sampler.choose(row) for row in logits] == output.token_ids


def test_whole_rows_are_fetched_where_the_host_changes_them(
    artifact: Artifact, driver: FakeCuda
) -> None:
    """Beside them others are chosen by the step as ever."""
    engine = Engine(artifact, context=64, library=CudaLibrary(artifact, Driver(driver)))
    common: dict[str, Any] = {"max_tokens": 2, "ignore_eos": True}
    greedy, drawn = SamplingParams(temperature=0.0, **common), SamplingParams(seed=2, **common)
    changed = SamplingParams(seed=1, top_k=5, repetition_penalty=1.2, **common)
    driver.copied.clear()
    outputs = engine.generate([[5, 7], [3], [8]], [greedy, changed, drawn])
    assert driver.copied[0] == 3 * 4 * engine.plan.vocab_size
    assert outputs[0].token_ids == engine.generate([[5, 7]], greedy)[0].token_ids
    assert outputs[2].token_ids == engine.generate([[8]], drawn)[0].token_ids


class OnGpu:
    """A tensor that says it is on a GPU; the stand-in's memory is the host's."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 0

    def __dlpack__(self, *, stream: int | None = None) -> Any:
        return self.tensor.__dlpack__()


def test_tensors_on_the_gpu_come_and_go_without_torch(
    checkpoint: Path, artifact: Artifact, driver: FakeCuda
) -> None:
    engine = Engine(artifact, context=64, library=CudaLibrary(artifact, Driver(driver)))
    ids = torch.tensor([[5, 7, 11, 2] * 5])
    driver.copied.clear()
    found = engine.device_logits(OnGpu(ids.int()))
    assert isinstance(found, DeviceTensor) and found.shape == (20, engine.plan.vocab_size)
    assert driver.copied == [80], "only the ids came to the host"
    capsule = found.__dlpack__()
    assert found.__dlpack_device__() == (2, 0)
    memory = (ctypes.c_float * (20 * engine.plan.vocab_size)).from_address(found.address)
    got = torch.tensor(list(memory)).reshape(found.shape)
    want = engine.logits(ids[0].tolist())
    assert torch.equal(got, torch.from_numpy(want))
    place = found.address
    del found
    assert place in driver._memory, "the capsule keeps it"
    del capsule
    assert place not in driver._memory
    params = SamplingParams(temperature=0.0, max_tokens=2, ignore_eos=True)
    one, other = engine.generate([OnGpu(ids[0, :3]), [5, 7, 11]], params)
    assert one.token_ids == other.token_ids
    with pytest.raises(RequestError, match=r"must be a dense row of int32 or int64, not shape \(2"):
        engine.device_logits(OnGpu(torch.zeros(2, 3, dtype=torch.int64)))


def test_what_cannot_run_it_is_one_sentence(artifact: Artifact, driver: FakeCuda) -> None:
    old = FakeCuda({}, capability=(7, 5))
    with pytest.raises(ArtifactError, match=r"compiled for sm_80; this GPU is sm_75\. Compile it"):
        CudaLibrary(artifact, Driver(old))
    none = FakeCuda({})
    none.devices = 0
    with pytest.raises(ArtifactError, match=r"the driver sees no GPU\. It needs a GPU"):
        Driver(none)
    broken: Any = FakeCuda({})
    broken.cuInit = lambda flags: (100,)
    with pytest.raises(ArtifactError, match=r"cuInit failed: 100"):
        Driver(broken)


def test_a_file_of_another_format_is_refused(
    artifact: Artifact, driver: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = artifact.json(LAUNCHES)
    del old["format"], old["counter_bytes"]
    monkeypatch.setattr(Artifact, "json", lambda self, name: old)
    sentence = (
        f"{LAUNCHES} of {artifact.path} has format 1, and this graphwright runs format 5: another "
        "version wrote it. Compile it again."
    )
    with pytest.raises(ArtifactError, match=f"^{re.escape(sentence)}$"):
        CudaLibrary(artifact, Driver(driver))
    old["format"] = 5
    with pytest.raises(ArtifactError, match=r"is incomplete: KeyError\('counter_bytes'\)"):
        CudaLibrary(artifact, Driver(driver))


def test_without_cuda_bindings_it_says_what_to_install(
    artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)  # as if it were not installed
    with pytest.raises(ArtifactError, match=r"needs the package cuda-bindings \(pip install 'gra"):
        Engine(artifact)


@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="this machine has a GPU")
def test_without_a_driver_run_says_so(artifact: Artifact) -> None:
    done = command("run", artifact.path, "--prompt-ids", "1,2")
    assert done.returncode == 1
    assert "is for an NVIDIA GPU, and none can be used here" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_targets_that_do_not_exist_are_refused() -> None:
    assert [chip.name for chip in chips_of("cuda")] == ["sm_80", "sm_90"]
    with pytest.raises(BackendError, match=r"'cuda:sm_75' is not a GPU target"):
        chips_of("cuda:sm_75")
    with pytest.raises(BackendError, match="'f8' is no dtype"):
        GpuOptions("f8")
    with pytest.raises(BackendError, match="a cache in fp8 is for GPUs"):
        graphwright.compile("nowhere", kv_cache_dtype="fp8")


def test_the_plan_is_json(artifact: Artifact) -> None:
    assert json.loads(artifact.read("plan.json"))["entries"]["decode"]["buckets"][0] == 1


def test_a_step_starts_on_the_other_side_while_one_runs(
    artifact: Artifact, driver: FakeCuda
) -> None:
    """The first by launches; on each side the next one is captured, and those behind replayed."""
    library = CudaLibrary(artifact, Driver(driver))
    engine = Engine(artifact, context=64, library=library)
    driver.calls.clear()
    engine.generate([[5]], SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True))
    said = ("capture", "replay", "mark", "wait for mark")
    calls = [each for each in driver.calls if each in said]
    done = said[-1]
    assert calls == [
        "mark", "capture", "replay", "mark", done, "capture", "replay", "mark", done,
        *["replay", "mark", done] * 2, "replay", "mark", done, done,
    ]  # fmt: skip
    pinned = [region for region in library.regions if region.startswith("host_")]
    for name in (*pinned, "largest"):
        assert len({side.regions[name] for side in library._sides}) == 2, name
    assert library._sides[0].regions["chosen"] == library._sides[1].regions["chosen"]


def test_steps_that_overlap_say_what_others_do(artifact: Artifact, driver: FakeCuda) -> None:
    """Sequences of several lengths, one that ends itself, one that comes later and is drawn, one
    that is cancelled and one that stops at once, with places for three."""
    greedy: dict[str, Any] = {"temperature": 0.0}
    drawn = SamplingParams(temperature=1.5, top_p=0.9, seed=3, max_tokens=5, ignore_eos=True)

    def said(eos: int | None, **options: bool) -> list[list[int]]:
        library = CudaLibrary(artifact, Driver(driver), **options)
        engine = Engine(artifact, context=64, max_sequences=3, library=library)
        engine.eos_ids = frozenset() if eos is None else frozenset([eos])
        prompts: list[tuple[list[int], SamplingParams]] = [
            (random_tokens(CHUNK + 3, seed=1).tolist(), SamplingParams(max_tokens=7, **greedy)),
            ([3, 9], SamplingParams(max_tokens=1, **greedy)),
            ([5, 7], SamplingParams(max_tokens=9, **greedy)),
            ([11], SamplingParams(max_tokens=9, **greedy)),
        ]
        requests = [engine.submit(*each) for each in prompts]
        while len(requests[3].generated) < 2:
            engine.step()
        engine.cancel(requests[3])
        requests[3:] = [engine.submit([8, 2, 6], drawn)]
        while not all(request.finished for request in requests):
            engine.step()
        assert engine.step() is False and engine._pool.free == engine._pool.blocks
        return [request.generated for request in requests]

    free = said(None, overlaps=False)
    assert [len(each) for each in free] == [7, 1, 9, 5]
    eos = free[2][4]
    want = said(eos, overlaps=False)
    assert len(want[2]) < 6
    assert said(eos) == want
    assert said(None, capture=False) == free


def test_a_start_that_was_interrupted_harms_no_step_behind(
    artifact: Artifact, driver: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = CudaLibrary(artifact, Driver(driver))
    engine = Engine(artifact, context=64, library=library)
    params = SamplingParams(temperature=0.0, max_tokens=5, ignore_eos=True)
    want = [each.token_ids for each in engine.generate([[5], [7, 2]], params)]

    def interrupted(event: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr(library.driver, "mark", interrupted)
        with pytest.raises(KeyboardInterrupt):
            engine.generate([[9]], params)
    driver.calls.clear()
    assert [each.token_ids for each in engine.generate([[5], [7, 2]], params)] == want
    assert driver.calls.count("wait") == 1, "before its inputs are overwritten"


@pytest.mark.parametrize("overlaps", [True, False])
def test_the_cost_of_the_host_is_measured_without_a_gpu(
    artifact: Artifact, overlaps: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[3] / "benchmarks" / "gpu"))
    host = import_module("host")
    Driver(host.IdleDriver(90)).launch(0, (1, 1, 1), 32, 0, [0], True)  # as Hopper's artifacts do
    monkeypatch.setattr(host, "PROMPT", 20)
    monkeypatch.setattr(host, "STEPS", 5)
    monkeypatch.setattr(host, "SEQUENCES", (1, CHUNK))
    for sequences in host.SEQUENCES:
        assert 0 < host.step_seconds(artifact, sequences, overlaps, drawn=not overlaps) < 1
