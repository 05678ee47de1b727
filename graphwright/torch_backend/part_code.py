"""Native code of row parts, compiled once for all parts that are alike but for their weights."""

from __future__ import annotations

import re
import tempfile
import threading
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from graphwright.backends.blobs import BlobTable, identity
from graphwright.backends.tvm.build import build
from graphwright.backends.tvm.target import host_cpu
from graphwright.frontend.row_parts.program import Tensors
from graphwright.ir.printer import format_graph
from graphwright.ir.program import Program
from graphwright.passes.base import PassContext
from graphwright.passes.pipeline import PipelineOptions, part_pipeline
from graphwright.passes.recipe import Recipe
from graphwright.passes.row_check import RowCheck
from graphwright.passes.running import run_passes
from graphwright.passes.token_axis import find_token_axes
from graphwright.process import without_collection
from graphwright.runtime.step_code import StepCode

__all__ = ["CHUNK", "DECODE_ROWS", "PartCode", "PartCodes"]

DECODE_ROWS, CHUNK = 8, 512  # the most rows that the entries take


@dataclass(frozen=True, eq=False)
class PartCode:
    """The library of parts of one kind. inputs, outputs: float32 values of a row.

    tensors: what `blobs` reads weights from, to be set before they are packed.
    """

    code: StepCode
    blobs: BlobTable
    tensors: Tensors
    inputs: int
    outputs: int
    arena_bytes: int
    phases: int
    lock: threading.Lock


class PartCodes:
    """The codes that there are in this process, by what makes them."""

    def __init__(self) -> None:
        self._made: dict[Hashable, PartCode] = {}
        self._lock = threading.RLock()

    def get(
        self, program: Program, tensors: Tensors, recipe: Recipe,
        example: Sequence[torch.Tensor] | None, check: bool,
    ) -> PartCode:  # fmt: skip
        """The code of a captured part, which is compiled where none like it was.

        example: weights to check numbers with; None: there are none at hand.
        Raises PassError or BackendError.
        """
        made_of = tuple(identity(weight) for _, weight in program.weights.items())
        key = (_without_numbers(format_graph(program), recipe), made_of, str(recipe))
        with self._lock:
            if key not in self._made:
                with without_collection():
                    self._made[key] = _compile(program, tensors, recipe, example, check)
            return self._made[key]


def _without_numbers(text: str, recipe: Recipe) -> str:
    """Layers differ by numbers in the names of their weights, unless the recipe asks for some."""
    if any(re.search(r"\d", pattern) for pattern, _ in recipe.overrides):
        return text
    return re.sub(r"%(\w+)", lambda name: re.sub(r"_\d+_", "_N_", name[0]), text)


def _compile(
    program: Program, tensors: Tensors, recipe: Recipe,
    example: Sequence[torch.Tensor] | None, check: bool,
) -> PartCode:  # fmt: skip
    find_token_axes(program)  # a proof of its own that rows stay apart
    inputs = int(program.placeholder("tokens").meta["val"].shape[1])
    outputs = int(program.output.meta["val"].shape[1])
    context = PassContext(fuel=PassContext.fuel_from_environment())
    tensors.values = example or ()
    if check and example:
        context.check = RowCheck(inputs)
    options = PipelineOptions(recipe, decode_tokens=DECODE_ROWS, chunk=CHUNK)
    run_passes(program, part_pipeline(options), context)
    built = build(program, host_cpu())
    tensors.values = ()
    with tempfile.TemporaryDirectory(prefix="graphwright-") as folder:
        path = Path(folder) / "part.so"
        path.write_bytes(built.library)
        code = StepCode(path)
    return PartCode(
        code,
        built.blobs,
        tensors,
        inputs,
        outputs,
        max(plan.arena_bytes for plan in program.plans.values()),
        max(map(len, built.phases.values())),
        threading.Lock(),
    )
