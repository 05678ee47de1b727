"""From a model to the sizes of everything that its engine will allocate, without its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphwright.adapter_arguments import named_adapters
from graphwright.compile_options import CompileOptions, Progress
from graphwright.gguf_input import capture_gguf_file, gguf_file
from graphwright.ir.errors import PassError
from graphwright.prepare import Capture, Stages, capture_onnx_file, local_model, prepare
from graphwright.process import without_collection

if TYPE_CHECKING:
    import torch

    from graphwright.machine_code import GeneratorPlan

__all__ = ["PlannedModel", "plan_model"]


@dataclass(frozen=True)
class PlannedModel:
    """has_weights: were they there? Nothing of them has been read either way."""

    plan: GeneratorPlan
    options: CompileOptions
    has_weights: bool


def plan_model(
    model: str | Path | torch.nn.Module,
    options: CompileOptions,
    *,
    adapters: Mapping[str, str | Path] | None = None,
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> PlannedModel:
    """What `compile` would write to plan.json, for a checkpoint directory (its config.json is
    enough), a model of the Hugging Face Hub, an ONNX or GGUF file or a decoder `nn.Module`.

    The same passes run and the same backend lays out memory, but no weight is loaded, nothing is
    compared by numbers, and no code is made: refusals that need any of that are `compile`'s.
    adapters: as for `compile`.
    Raises FrontendError, PassError or BackendError.
    """
    with without_collection():
        from graphwright.machine_code import code_generator
        from graphwright.passes.auto_recipe import is_auto

    if is_auto(options.quant):
        raise PassError(
            f"quant='{options.quant}' chooses by what the model computes, and a plan reads no "
            "weight: compile, and plan the file, or plan with a scheme such as w4g32."
        )
    with without_collection():
        generator = code_generator(options.target, options.dtype)
    beside = named_adapters(adapters or {}, model)
    if isinstance(model, (str, Path)):
        model = local_model(model, code=trust_remote_code, weights=False)
    capture, has_weights = _capture(model, options.context, trust_remote_code, beside)
    stages = Stages(progress or Progress())
    prepared = prepare(capture, options, generator.decode_tokens, stages)
    with stages.stage("plan"), without_collection():
        plan = generator.plan(prepared.program)
    return PlannedModel(plan, options, has_weights)


def _capture(
    model: Path | torch.nn.Module, context: int | None, trust: bool, adapters: Mapping[str, Path]
) -> tuple[Capture, bool]:
    """How `model` is captured, and whether it has weights."""
    from graphwright.frontend.capture import capture_with_weights
    from graphwright.frontend.declared_checkpoint import capture_declared, has_weights
    from graphwright.ir.weights import ConstantTensor

    if not isinstance(model, Path):
        module: Any = model

        def capture_module() -> Any:
            return capture_with_weights(
                module,
                lambda origin, tensor: ConstantTensor.of(tensor.detach(), origin),
                max_context=context,
                has_values=False,
            )

        return lambda: (capture_module(), {}), True
    stored = gguf_file(model)
    if stored is not None:
        return lambda: capture_gguf_file(stored, context, [], has_values=False), True
    if model.suffix == ".onnx":
        return lambda: (capture_onnx_file(model, context, has_values=False), {}), True
    return lambda: (
        capture_declared(
            model, trust_remote_code=trust, max_context=context, adapters=adapters
        ), {},
    ), has_weights(model)  # fmt: skip
