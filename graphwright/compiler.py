"""The compile driver: capture, passes, backend, artifact; each is a room of its own."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphwright.adapter_arguments import adapters_of, named_adapters
from graphwright.calibration_tokens import (
    CALIBRATION_TOKENS,
    CalibrationSource,
    open_tokens,
)
from graphwright.compile_options import CompileOptions, Progress
from graphwright.gguf_input import capture_gguf_file, chosen_recipe, gguf_file
from graphwright.ir.errors import BackendError, FrontendError
from graphwright.ir.program import Program
from graphwright.prepare import Stages, capture_onnx_file, local_model, one_thread, prepare
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


@dataclass
class Compiled:
    """A compiled model: `save` writes the artifact, `load` runs it in this process.

    notes: what there is to say of the model and of what was chosen for it.
    """

    program: Program
    variants: tuple[BuiltProgram, ...] | tuple[GpuPackage, ...]  # from the most capable
    options: CompileOptions
    graphs: list[tuple[str, str]]
    files: dict[str, bytes]
    golden: dict[str, Any] | None
    tuned: list[Tuned] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
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
        with one_thread():
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
    quant: str | None = None,
    target: str = "host",
    chunk: int = 512,
    check: bool | None = None,
    context: int | None = None,
    kv_cache_dtype: str = "auto",
    dtype: str = "auto",
    attention: str | None = None,
    tune: float | None = None,
    calibration: CalibrationSource | None = None,
    calibration_tokens: int = CALIBRATION_TOKENS,
    max_kl: float | None = None,
    bits: float | None = None,
    max_size: int | None = None,
    example_tokens: torch.Tensor | None = None,
    lora: str | Path | Sequence[str | Path] = (),
    adapters: Mapping[str, str | Path] | None = None,
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> Compiled:
    """Compiles a checkpoint directory, an ONNX or GGUF file or a decoder `nn.Module`.

    ``ORG/NAME`` or ``ORG/NAME@REVISION``, where no such path exists, is a model of the Hugging Face
    Hub: it is downloaded to the cache of huggingface_hub unless it is there.
    `quant` is f32 by default, and for GGUF files the recipe nearest to what they store.
    `example_tokens` int64 [1, S] helps to trace a module whose vocabulary is not known otherwise.
    `calibration`, a UTF-8 text file for the checkpoint's tokenizer, token ids [sequences, length],
    or "self" for tokens that the model writes itself, rounds integer weights by the inputs that
    such tokens give them; of a text, or by the model, at most `calibration_tokens` are taken.
    With quant="auto" each weight's scheme is chosen, within `max_kl` nats a token, in `bits` a
    weight, or with all weights in `max_size` bytes, by tokens as `calibration` gives them, or by
    some that the model writes (docs/quantization.md).
    `lora`: adapters for a checkpoint, directories or names on the Hub, merged into its weights in
    this order. `adapters`: those that stay beside the weights, by the names that requests choose
    them by (docs/adapters.md). The other options are those of `CompileOptions`.
    Raises FrontendError, PassError or BackendError: a model is compiled right or refused.
    """
    with without_collection():
        from graphwright.frontend.lora import record_of
        from graphwright.golden import golden_tokens
        from graphwright.machine_code import code_generator
        from graphwright.program_tuning import check_budget, picks_of, tune_program

    notes: list[str] = []
    if isinstance(model, (str, Path)):
        model = local_model(model, code=trust_remote_code)
    quant = chosen_recipe(model, quant, notes)
    options = CompileOptions(
        quant, target, chunk, check, context, kv_cache_dtype, dtype, tune,
        attention=attention, max_kl=max_kl, bits=bits, max_size=max_size,
    )  # fmt: skip
    merge, beside = adapters_of(lora, model), named_adapters(adapters or {}, model)
    if merge:
        options = replace(options, lora=record_of(merge))
    if beside:
        told = (f"{name}={record_of([directory])}" for name, directory in beside.items())
        options = replace(options, adapters="; ".join(told))
    stages = Stages(progress or Progress())
    check_budget(tune)
    with without_collection():
        generator = code_generator(target, dtype, tuned=tune is not None)
    with without_collection():
        calibrating = open_tokens(calibration, calibration_tokens, model, options)
    prepared = prepare(
        lambda: _capture(model, example_tokens, trust_remote_code, context, merge, beside, notes),
        options, generator.decode_tokens, stages, calibrating, rounds=calibration is not None,
    )  # fmt: skip
    program = prepared.program
    with stages.stage("golden", "golden tokens"), one_thread():
        golden = golden_tokens(program)
    tuned: list[Tuned] = []
    if tune is not None:
        with stages.stage("tuning"):
            tuned = tune_program(program, generator, tune, stages.progress.tuning)
    with stages.stage("native code"), without_collection():
        variants = generator.build(program, picks_of(tuned) if tuned else None)
    _check_size(variants[0].plan["weights"]["bytes"], max_size)
    return Compiled(
        program, variants, prepared.options, prepared.graphs, prepared.files, golden, tuned,
        notes, stages.seconds, stages.progress,
    )  # fmt: skip


def _capture(
    model: str | Path | torch.nn.Module,
    example_tokens: torch.Tensor | None,
    trust: bool,
    context: int | None,
    lora: Sequence[Path],
    adapters: Mapping[str, Path],
    notes: list[str],
) -> tuple[Program, dict[str, bytes]]:
    from graphwright.frontend.capture import capture_module
    from graphwright.frontend.checkpoint import capture_checkpoint

    if isinstance(model, (str, Path)):
        path = Path(model)
        stored = gguf_file(path)
        if stored is not None:
            return capture_gguf_file(stored, context, notes)
        if path.suffix == ".onnx":
            program, folder = capture_onnx_file(path, context), path.parent
        else:
            program = capture_checkpoint(
                path, trust_remote_code=trust, max_context=context, lora=lora, adapters=adapters
            )
            folder = path
        found = [folder / name for name in _COPIED]
        return program, {each.name: each.read_bytes() for each in found if each.is_file()}
    if not hasattr(model, "forward"):
        raise FrontendError(
            "compile takes a checkpoint directory, an ONNX or GGUF file or an nn.Module, not a "
            f"{type(model).__name__}."
        )
    return capture_module(model, example_tokens=example_tokens, max_context=context), {}


def _check_size(taken: int, most: int | None) -> None:
    """Raises BackendError if the weights, as the target packs them, take more than was allowed."""
    if most is not None and taken > most:
        raise BackendError(
            f"the weights take {taken} bytes as this target packs them, and max_size is {most}: "
            f"give {2 * most - taken}, so that as much as was not foreseen is left."
        )


def log_as_json(program: Program) -> str:
    """The pass log as stored: without times, so that equal inputs give equal files."""
    rows = [{k: v for k, v in vars(record).items() if k != "seconds"} for record in program.log]
    return json.dumps(rows, indent=1)
