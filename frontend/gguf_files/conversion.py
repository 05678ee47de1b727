"""From tensors of a GGUF file to a model whose parameters stand for weights over them.

Which tensor goes where, and what is done to it on the way, transformers knows. It does so in two
ways, by architecture: with conversions of its own loader, or tensor by tensor over numpy arrays.
Both get tensors without memory, and what they do becomes part of each weight.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from graphwright.frontend.gguf_files.blocks import stored_weights
from graphwright.frontend.gguf_files.reading import GgufFile
from graphwright.frontend.gguf_files.recorded_arrays import Canvas, RecordedArray, RecordingTorch
from graphwright.frontend.gguf_files.rope_settings import FREQUENCY_FACTORS, divide_frequencies
from graphwright.frontend.recorded_tensors import RecordedTensor, load_buffers
from graphwright.frontend.transformers_loading import LOADING, as_module, check_report, loading
from graphwright.ir.errors import FrontendError

__all__ = ["load_model"]

_HEADER = "its header"


def load_model(file: GgufFile, config: Any, values: dict[str, Any]) -> nn.Module:
    """The model of `config` with float32 parameters that are recorded tensors over `file`.

    values: those that `config` was made of. Raises FrontendError for tensors that are missing, do
    not fit, or that the model has no use for.
    """
    from transformers.integrations.gguf import (
        get_gguf_conversion_mapping,
        is_gguf_arch_supported,
    )

    weights = stored_weights(file)
    factors = weights.pop(FREQUENCY_FACTORS, None)
    tensors: dict[str, torch.Tensor] = {
        name: RecordedTensor(weight) for name, weight in weights.items()
    }
    with loading(file.path):
        kind = _empty(config)
        if is_gguf_arch_supported(file.architecture):
            mapping = get_gguf_conversion_mapping(file.architecture, kind.config)
            with _conversions(mapping):
                model, report = _from_tensors(kind, tensors)
            unused = sorted(report["unexpected_keys"])
        else:
            converted, unused = _converted(file, kind, values, tensors)
            model, report = _from_tensors(kind, converted)
    check_report(file.path, report, _HEADER)
    if unused:
        raise FrontendError(
            f"{len(unused)} tensor(s) of '{file.path}' have no place in the model that "
            f"transformers makes of its header ({type(model).__name__}), the first is "
            f"'{unused[0]}', so it would compute something else. Give the original checkpoint."
        )
    load_buffers(model)
    if factors is not None:
        divide_frequencies(file, model, factors.load())
    return as_module(model)


def _empty(config: Any) -> Any:
    """The model without memory, to know its class and its names."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def _from_tensors(kind: Any, tensors: dict[str, torch.Tensor]) -> tuple[Any, dict[str, Any]]:
    model, report = type(kind).from_pretrained(
        None, config=kind.config, state_dict=tensors, dtype=torch.float32, **LOADING
    )
    return model, report


@contextmanager
def _conversions(mapping: list[Any]) -> Iterator[None]:
    """While open, models are loaded by these conversions in place of their own."""
    from transformers import modeling_utils

    own = modeling_utils.get_model_conversion_mapping
    modeling_utils.get_model_conversion_mapping = lambda *_, **__: mapping
    try:
        yield
    finally:
        modeling_utils.get_model_conversion_mapping = own


def _converted(
    file: GgufFile, kind: Any, values: dict[str, Any], tensors: dict[str, torch.Tensor]
) -> tuple[dict[str, torch.Tensor], list[str]]:
    """The parameters of a model by their names, and the tensors that are none of them."""
    from transformers import modeling_gguf_pytorch_utils as reader

    processors = reader.TENSOR_PROCESSORS
    processor = processors.get(file.architecture, reader.TensorProcessor)(config=values)
    names = reader.get_gguf_hf_weights_map(kind, processor)
    parsed: dict[str, Any] = {"tensors": {}}
    made: dict[str, Any] = parsed["tensors"]
    unused: list[str] = []
    with _recording(reader):
        for name, tensor in tensors.items():
            result = processor.process(
                weights=RecordedArray(tensor),
                name=name,
                tensor_key_mapping=names,
                parsed_parameters=parsed,
            )
            if result.name is None:  # it has put it in its place itself
                continue
            if result.name not in names:
                unused.append(name)
                continue
            made[names[result.name]] = result.weights.tensor
    filled = {
        name: each.tensor() if isinstance(each, Canvas) else each for name, each in made.items()
    }
    return filled, unused


@contextmanager
def _recording(module: Any) -> Iterator[None]:
    """While open, what `module` does with torch makes recorded tensors of recorded arrays."""
    own = module.torch
    module.torch = RecordingTorch()
    try:
        yield
    finally:
        module.torch = own
