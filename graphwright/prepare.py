"""The stages up to a planned program, which compiling and planning have in common."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from graphwright.hub import HubError, HubModel
from graphwright.ir.errors import BackendError, FrontendError
from graphwright.process import without_collection

if TYPE_CHECKING:
    from graphwright.calibration_tokens import Calibrating
    from graphwright.compile_options import CompileOptions, Progress
    from graphwright.ir.program import Program

__all__ = [
    "Capture", "Prepared", "Stages", "capture_onnx_file", "local_model", "one_thread", "prepare",
]  # fmt: skip

Capture = Callable[[], "tuple[Program, dict[str, bytes]]"]
"""Gives the captured program, and what is kept of the files beside the model, by name."""


@dataclass
class Stages:
    """Tells `progress` of each stage, and notes how long it took."""

    progress: Progress
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str, title: str | None = None) -> Iterator[None]:
        """What is done while open is the stage `name`, called `title` to people."""
        self.progress.stage(title or name)
        start = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - start


@dataclass(frozen=True)
class Prepared:
    """A planned program. graphs: after each pass, by name. options: with what was found out."""

    program: Program
    options: CompileOptions
    graphs: list[tuple[str, str]]
    files: dict[str, bytes]


def prepare(
    capture: Capture,
    options: CompileOptions,
    decode_tokens: int,
    stages: Stages,
    calibrating: Calibrating | None = None,
    *,
    rounds: bool = True,
) -> Prepared:
    """Captures and runs the passes. decode_tokens: the most of a step of the decode entry.

    calibrating: gives the tokens to choose schemes by, where the recipe is `auto`, and, if it
    `rounds`, to round weights by, once the model is known. Raises FrontendError, PassError,
    BackendError.
    """
    if options.kv_cache_dtype == "fp8" and not options.target.startswith("cuda"):
        raise BackendError(
            "a cache in fp8 is for GPUs (--target cuda:…); on CPUs int8 takes as much, and keeps a "
            "scale for each token and head."
        )
    with without_collection():
        from graphwright.passes.auto_recipe import AutoRecipe, Budget, is_auto
        from graphwright.passes.base import PassContext
        from graphwright.passes.choose_schemes import ChooseSchemes
        from graphwright.passes.pipeline import PipelineOptions, pipeline
        from graphwright.passes.recipe import Recipe
        from graphwright.passes.restrict_attention import Restriction
        from graphwright.passes.running import run_passes
        from graphwright.passes.verification import NumericCheck, should_check

    auto = is_auto(options.quant)
    chosen = PipelineOptions(
        Recipe() if auto else Recipe.parse(options.quant), decode_tokens, options.chunk,
        kv_cache_dtype=options.kv_cache_dtype,
        attention=None if options.attention is None else Restriction.parse(options.attention),
    )  # fmt: skip
    steps = pipeline(chosen)
    with stages.stage("capture"):
        with one_thread(), without_collection():
            program, files = capture()
        if calibrating is not None:
            tokens = calibrating(program.info, files)
            if rounds:
                options = replace(options, calibration=tokens.record)
            if auto:
                budget = Budget(options.max_kl, options.bits, options.max_size)
                choice = ChooseSchemes(AutoRecipe.parse(options.quant), budget, tokens, rounds)
                steps = pipeline(replace(chosen, choice=choice))
            else:
                steps = pipeline(replace(chosen, calibration=tokens))
    with stages.stage("passes"):
        graphs: list[tuple[str, str]] = []
        wanted = should_check(program) if options.check is None else options.check
        run = PassContext(
            check=NumericCheck() if wanted else None,
            on_graph=lambda name, text: graphs.append((name, text)),
            on_record=stages.progress.record,
            on_progress=stages.progress.within_pass,
            fuel=PassContext.fuel_from_environment(),
        )
        with one_thread(), without_collection():
            run_passes(program, steps, run)
    return Prepared(program, options, graphs, files)


def local_model(model: str | Path, *, code: bool, weights: bool = True) -> Path:
    """Where `model` lies on this disk, downloaded first if the Hub has it (`HubModel`).

    code, weights: as for `HubModel.on_disk`. Raises FrontendError.
    """
    hub = HubModel.parse(str(model))
    if hub is None:
        return Path(model)
    try:
        return hub.on_disk(code=code, weights=weights)
    except HubError as error:
        raise FrontendError(str(error)) from error


def capture_onnx_file(path: Path, context: int | None, *, has_values: bool = True) -> Program:
    """`capture_onnx`, once it is known that it can be tried. Raises FrontendError."""
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
    return capture_onnx(path, max_context=context, has_values=has_values)


@contextmanager
def one_thread() -> Iterator[None]:
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
