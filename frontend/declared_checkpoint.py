"""Checkpoint directory → Program without its weights: config.json says what there will be.

For plans: shapes are known, values are not, and nothing of a weight file but its header is read. A
directory that holds no weights at all will do.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from graphwright.frontend.beside_weights import beside_weights
from graphwright.frontend.capture import capture_with_weights
from graphwright.frontend.checkpoint import known_config
from graphwright.frontend.checkpoint_files import CheckpointFiles, checkpoint_name
from graphwright.frontend.transformers_loading import reason_of
from graphwright.ir.errors import FrontendError
from graphwright.ir.program import Program
from graphwright.ir.weights import ConstantTensor, Weight

__all__ = ["DeclaredTensor", "capture_declared", "has_weights", "without_parameters"]

_DRAWN_BYTES = 1 << 16
_WEIGHT_FILES = ("*.safetensors", "*.safetensors.index.json", "*.bin")


@dataclass(frozen=True, eq=False)
class DeclaredTensor(Weight):
    """A parameter of which nothing is known but shape and dtype.

    Passes look at the numbers of small tensors to tell them from positions and masks (of attention
    sinks, say). Drawn ones stand for them: what is trained is as unlike those.
    """

    name: str

    def load(self) -> torch.Tensor:
        if self.nbytes > _DRAWN_BYTES or not self.dtype.is_floating_point:
            raise FrontendError(
                f"what becomes of this model follows from the values of '{self.name}', which are "
                "not read for a plan: compile it, and give the artifact."
            )
        generator = torch.Generator().manual_seed(zlib.crc32(self.name.encode()))
        return torch.randn(self.shape, generator=generator).to(self.dtype)

    def describe(self) -> str:
        return self.name


def has_weights(directory: Path) -> bool:
    """Does a checkpoint directory hold files of weights?"""
    return any(next(directory.glob(each), None) is not None for each in _WEIGHT_FILES)


def capture_declared(
    directory: str | Path, *, trust_remote_code: bool = False, max_context: int | None = None,
    adapters: Mapping[str, Path] | None = None,
) -> Program:  # fmt: skip
    """As `capture_checkpoint`, for a program whose parameters are DeclaredTensors.

    Files of weights, if there are any, must be whole by their headers. What config.json promises
    and they lack is not found; `capture_checkpoint` does. Raises FrontendError.
    """
    directory = Path(directory)
    with known_config(directory, trust_remote_code) as config:
        if config.get("quantization_config"):
            raise FrontendError(
                f"'{directory}' is quantized already, and what its matrices become follows from "
                "its files: compile it, and give the artifact."
            )
        if has_weights(directory):
            CheckpointFiles(directory)
        model = _build(directory, trust_remote_code)
        parameters = {id(each) for each in model.parameters()}

        def source(origin: str, tensor: torch.Tensor) -> Weight:
            if id(tensor) in parameters:
                return DeclaredTensor(tuple(tensor.shape), tensor.dtype, origin)
            return ConstantTensor.of(tensor.clone(), origin)

        adapted, told = beside_weights(model, source, adapters or {}, has_values=False)
        program = capture_with_weights(
            model,
            adapted,
            name=checkpoint_name(directory),
            max_context=max_context,
            has_values=False,
        )
        program.adapters = told
        return program


def _build(directory: Path, trust_remote_code: bool) -> nn.Module:
    from transformers import AutoConfig, AutoModelForCausalLM

    given: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    try:
        config = AutoConfig.from_pretrained(directory, local_files_only=True, **given)
        with without_parameters():
            model = AutoModelForCausalLM.from_config(config, **given)
    except Exception as error:
        raise FrontendError(
            f"transformers cannot build '{directory}': {reason_of(error)}."
        ) from error
    assert isinstance(model, nn.Module)
    return model


@contextmanager
def without_parameters() -> Iterator[None]:
    """While open, parameters of modules have shapes only; buffers are computed as always."""
    register = nn.Module.register_parameter

    def register_shape(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        if param is not None and not param.is_meta:
            param = nn.Parameter(param.detach().to("meta"), requires_grad=False)
        register(self, name, param)

    nn.Module.register_parameter = register_shape  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]
