"""The compile driver: capture, passes, backend, artifact; each is a room of its own."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphwright.calibration_tokens import (
    CALIBRATION_TOKENS,
    CalibrationSource,
    open_calibration,
)
from graphwright.ir.errors import BackendError, FrontendError
from graphwright.ir.program import PassRecord, Program
from graphwright.process import without_collection

if TYPE_CHECKING:
    import torch

    from graphwright.backends.triton.package import GpuPackage
    from graphwright.backends.tuning import Tuned
    from graphwright.backends.tvm.build import BuiltProgram
    from graphwright.runtime.engine import Engine

__all__ = ["CompileOptions", "Compiled", "Progress", "compile"]

_COPIED = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
           "chat_template.jinja", "generation_config.json")  # fmt: skip


@dataclass(frozen=True)
class CompileOptions:
    """What `compile` was asked for; it is stored in the artifact.

    quant: a recipe such as ``f32``, ``w8``, ``w8:head=f32``. target: ``host``, a CPU's name, or
    several with commas between them, of which each machine takes the best that it can run, or GPUs
    as ``cuda:sm_80,sm_90``. chunk: the most tokens one prefill step takes. check: compare the
    numbers after every pass (None: when the weights are small enough for it to be quick). context:
    the most tokens of a sequence (None: what the model was made for); embeddings that scale with
    the length of the sequence are those of this length. kv_cache_dtype: how keys and values are
    kept, ``auto`` (float32, on GPUs the activations' type), ``f32``, ``f16``, ``bf16``, ``fp8``
    (e4m3, on GPUs) or ``int8`` (a scale for each token and head). dtype: of activations on GPUs,
    ``auto`` (bf16), ``f32``, ``bf16`` or ``f16``. tune: the seconds for which kernels are timed on
    this machine, to choose between variants of them (None: the ones that suit most);
    docs/tuning.md. calibration: which tokens integer weights were rounded by (None: to nearest);
    docs/quantization.md.
    """

    quant: str = "f32"
    target: str = "host"
    chunk: int = 512
    check: bool | None = None
    context: int | None = None
    kv_cache_dtype: str = "auto"
    dtype: str = "auto"
    tune: float | None = None
    calibration: str | None = None


@dataclass
class Progress:
    """Callbacks while compiling: a stage begins, a pass is done, packed bytes of all bytes, the
    share of the seconds for tuning that is spent, and on what."""

    stage: Callable[[str], None] = lambda name: None
    record: Callable[[PassRecord], None] = lambda record: None
    packed: Callable[[int, int], None] = lambda done, total: None
    tuning: Callable[[float, str], None] = lambda share, choice: None


@dataclass
class Compiled:
    """A compiled model: `save` writes the artifact, `load` runs it in this process."""

    program: Program
    variants: tuple[BuiltProgram, ...] | tuple[GpuPackage, ...]  # from the most capable
    options: CompileOptions
    graphs: list[tuple[str, str]]
    files: dict[str, bytes]
    golden: dict[str, Any] | None
    tuned: list[Tuned] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    _progress: Progress = field(default_factory=Progress)

    @property
    def built(self) -> BuiltProgram | GpuPackage:
        """The variant for the most capable CPU. Plan and weights are the same in all."""
        return self.variants[0]

    @property
    def target(self) -> str:
        """The CPUs or GPUs that it was compiled for."""
        return ", ".join(each.target for each in self.variants)

    def save(self, path: str | Path) -> Path:
        """Writes the artifact at `path`, whole or not at all. Raises ArtifactError."""
        from graphwright.artifact_files import write_artifact

        start = time.perf_counter()
        self._progress.stage("pack weights and write")
        with _one_thread():
            write_artifact(self, Path(path), self._progress.packed)
        self.seconds["write"] = time.perf_counter() - start
        return Path(path)

    def load(self, **options: Any) -> Engine:
        """An engine over a temporary copy of the artifact; `options` are Engine's."""
        import tempfile

        from graphwright.runtime.engine import Engine

        with tempfile.TemporaryDirectory(prefix="graphwright-") as folder:
            return Engine(self.save(Path(folder) / "model.gw"), **options)


def compile(
    model: str | Path | torch.nn.Module,
    *,
    quant: str = "f32",
    target: str = "host",
    chunk: int = 512,
    check: bool | None = None,
    context: int | None = None,
    kv_cache_dtype: str = "auto",
    dtype: str = "auto",
    tune: float | None = None,
    calibration: CalibrationSource | None = None,
    calibration_tokens: int = CALIBRATION_TOKENS,
    example_tokens: torch.Tensor | None = None,
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> Compiled:
    """Compiles a checkpoint directory, an ONNX file or a decoder `nn.Module` to native code.

    `example_tokens` int64 [1, S] helps to trace a module whose vocabulary is not known otherwise.
    `calibration`, a UTF-8 text file for the checkpoint's tokenizer, token ids [sequences, length],
    or "self" for tokens that the model writes itself, rounds integer weights by the inputs that
    such tokens give them; of a text, or by the model, at most `calibration_tokens` are taken.
    Raises FrontendError, PassError or BackendError: a model is compiled right or refused.
    """
    with without_collection():
        from graphwright.golden import golden_tokens
        from graphwright.machine_code import code_generator
        from graphwright.passes.base import PassContext
        from graphwright.passes.pipeline import PipelineOptions, pipeline
        from graphwright.passes.recipe import Recipe
        from graphwright.passes.running import run_passes
        from graphwright.passes.verification import NumericCheck, should_check
        from graphwright.program_tuning import check_budget, picks_of, tune_program

    if kv_cache_dtype == "fp8" and not target.startswith("cuda"):
        raise BackendError(
            "a cache in fp8 is for GPUs (--target cuda:…); on CPUs int8 takes as much, and keeps a "
            "scale for each token and head."
        )
    options = CompileOptions(quant, target, chunk, check, context, kv_cache_dtype, dtype, tune)
    progress = progress or Progress()
    check_budget(tune)
    with without_collection():
        generator = code_generator(target, dtype, tuned=tune is not None)
    chosen = PipelineOptions(
        Recipe.parse(quant), generator.decode_tokens, chunk, kv_cache_dtype=kv_cache_dtype
    )
    steps = pipeline(chosen)
    calibrating = None
    if calibration is not None:
        calibrating = open_calibration(calibration, model, chosen.recipe, calibration_tokens)
    seconds: dict[str, float] = {}

    def timed(stage: str, start: float) -> float:
        now = time.perf_counter()
        seconds[stage] = now - start
        return now

    clock = time.perf_counter()
    progress.stage("capture")
    with _one_thread(), without_collection():
        program, files = _capture(model, example_tokens, trust_remote_code, context)
    if calibrating is not None:
        tokens = calibrating(program.info, files)
        options = replace(options, calibration=tokens.record)
        steps = pipeline(replace(chosen, calibration=tokens))
    clock = timed("capture", clock)

    progress.stage("passes")
    wanted = should_check(program) if check is None else check
    graphs: list[tuple[str, str]] = []
    run = PassContext(
        check=NumericCheck() if wanted else None,
        on_graph=lambda name, text: graphs.append((name, text)),
        on_record=progress.record,
        fuel=PassContext.fuel_from_environment(),
    )
    with _one_thread(), without_collection():
        run_passes(program, steps, run)
    clock = timed("passes", clock)

    progress.stage("golden tokens")
    with _one_thread():
        golden = golden_tokens(program)
    clock = timed("golden", clock)

    tuned: list[Tuned] = []
    if tune is not None:
        progress.stage("tuning")
        tuned = tune_program(program, generator, tune, progress.tuning)
        clock = timed("tuning", clock)

    progress.stage("native code")
    with without_collection():
        variants = generator.build(program, picks_of(tuned) if tuned else None)
    timed("native code", clock)
    return Compiled(program, variants, options, graphs, files, golden, tuned, seconds, progress)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Torch on one thread: operators are small, and threads that spin cost more than they bring.

    Where there is enough to do, threads of ours run such operators side by side (ir/ahead.py).
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _capture(
    model: str | Path | torch.nn.Module,
    example_tokens: torch.Tensor | None,
    trust: bool,
    context: int | None,
) -> tuple[Program, dict[str, bytes]]:
    from graphwright.frontend.capture import capture_module
    from graphwright.frontend.checkpoint import capture_checkpoint

    if isinstance(model, (str, Path)):
        path = Path(model)
        if path.suffix == ".onnx":
            program, folder = _capture_onnx(path, context), path.parent
        else:
            program = capture_checkpoint(path, trust_remote_code=trust, max_context=context)
            folder = path
        found = [folder / name for name in _COPIED]
        return program, {each.name: each.read_bytes() for each in found if each.is_file()}
    if not hasattr(model, "forward"):
        raise FrontendError(
            "compile takes a checkpoint directory, an ONNX file or an nn.Module, not a "
            f"{type(model).__name__}."
        )
    return capture_module(model, example_tokens=example_tokens, max_context=context), {}


def _capture_onnx(path: Path, context: int | None) -> Program:
    if not path.is_file():
        raise FrontendError(f"there is no file '{path}'.")
    try:
        from graphwright.frontend.onnx_models.decoder import capture_onnx
    except ModuleNotFoundError as error:
        if error.name != "onnx":
            raise
        raise FrontendError(
            "ONNX files need the package onnx: pip install 'graphwright[onnx]'."
        ) from error
    return capture_onnx(path, max_context=context)


def log_as_json(program: Program) -> str:
    """The pass log as stored: without times, so that equal inputs give equal files."""
    rows = [{k: v for k, v in vars(record).items() if k != "seconds"} for record in program.log]
    return json.dumps(rows, indent=1)
