"""GGUF file → Program: transformers builds the module of the header, weights stay in the file."""

from __future__ import annotations

from pathlib import Path

import torch

from graphwright.frontend.capture import capture_with_weights
from graphwright.frontend.declared_checkpoint import DeclaredTensor, without_parameters
from graphwright.frontend.gguf_files.conversion import load_model
from graphwright.frontend.gguf_files.reading import read_gguf
from graphwright.frontend.gguf_files.settings import model_config
from graphwright.frontend.recorded_tensors import recorded_weight
from graphwright.frontend.transformers_loading import as_module, loading, silent
from graphwright.ir.program import Program
from graphwright.ir.weights import ConstantTensor, Weight

__all__ = ["capture_declared_gguf", "capture_gguf"]


def capture_gguf(path: str | Path, *, max_context: int | None = None) -> Program:
    """Traces the decoder in a GGUF file, or in the split one of which it is the first part.

    Weights are not copied: the program refers to the files, and blocks become floats when they are
    loaded. max_context as for `capture_module`. Raises FrontendError, one sentence, for anything
    missing, damaged or not supported.
    """
    file = read_gguf(Path(path))
    with silent():
        config, values = model_config(file)
        return capture_with_weights(
            load_model(file, config, values),
            lambda origin, tensor: recorded_weight(tensor) or ConstantTensor.of(tensor, origin),
            name=file.name,
            max_context=max_context,
        )


def capture_declared_gguf(path: str | Path, *, max_context: int | None = None) -> Program:
    """As `capture_gguf`, for a program whose parameters have shapes only. Raises FrontendError."""
    from transformers import AutoModelForCausalLM

    file = read_gguf(Path(path))
    with silent():
        config, _ = model_config(file)
        with loading(file.path), without_parameters():
            model = as_module(AutoModelForCausalLM.from_config(config))
        parameters = {id(each) for each in model.parameters()}

        def source(origin: str, tensor: torch.Tensor) -> Weight:
            if id(tensor) in parameters:
                return DeclaredTensor(tuple(tensor.shape), tensor.dtype, origin)
            return ConstantTensor.of(tensor.clone(), origin)

        return capture_with_weights(
            model, source, name=file.name, max_context=max_context, has_values=False
        )
