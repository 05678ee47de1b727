"""Checkpoint directory → Program: transformers builds the module, weights stay in their files."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from graphwright.frontend.beside_weights import beside_weights
from graphwright.frontend.capture import capture_with_weights
from graphwright.frontend.checkpoint_files import CheckpointFiles, checkpoint_name, read_json
from graphwright.frontend.lora import LoraAdapter
from graphwright.frontend.quantized.methods import Quantized, quantized_by
from graphwright.frontend.recorded_tensors import RecordedTensor, load_buffers, recorded_weight
from graphwright.frontend.transformers_loading import (
    LOADING,
    as_module,
    check_decoder,
    check_report,
    loading,
    silent,
)
from graphwright.ir.errors import FrontendError
from graphwright.ir.program import Program
from graphwright.ir.weights import Weight

__all__ = ["capture_checkpoint", "known_config"]


def capture_checkpoint(
    directory: str | Path,
    *,
    trust_remote_code: bool = False,
    max_context: int | None = None,
    lora: Sequence[Path] = (),
    adapters: Mapping[str, Path] | None = None,
) -> Program:
    """Loads the decoder saved in `directory` (config.json and safetensors) and traces it.

    Weights are not copied: the program refers to the files, which must stay where they are until
    the program has been compiled. Quantized ones become floats when they are loaded (methods.py).
    trust_remote_code runs Python code that lies in the directory; max_context as for
    `capture_module`. lora: directories of adapters that are merged into the weights, in order.
    adapters: of those that stay beside them, by the names that requests will choose them by.

    Raises FrontendError, one sentence, for anything missing, damaged or not supported.
    """
    directory = Path(directory)
    config = _read_config(directory)
    quantized = quantized_by(directory, config)
    files = CheckpointFiles(directory)
    with silent():
        _check_model_type(directory, config, trust_remote_code)
        if quantized is None:
            model = _load(directory, trust_remote_code)
        else:
            model = _load_quantized(quantized, files, trust_remote_code)
        names = _names_by_tensor(model)

        def source(origin: str, tensor: torch.Tensor) -> Weight:
            known = names.get(id(tensor), [origin])
            return recorded_weight(tensor) or files.weight(known, tensor)

        for each in lora:
            LoraAdapter(each).merge_into(model, source)
        adapted, told = beside_weights(model, source, adapters or {})
        program = capture_with_weights(
            model, adapted, name=checkpoint_name(directory), max_context=max_context
        )
        program.adapters = told
        return program


def _names_by_tensor(model: nn.Module) -> dict[int, list[str]]:
    """Every name of each tensor: tied ones have several, and the file may use any of them."""
    held: dict[str, torch.Tensor] = dict(model.named_parameters(remove_duplicate=False))
    held.update(model.named_buffers(remove_duplicate=False))
    names: dict[int, list[str]] = {}
    for name, tensor in held.items():
        names.setdefault(id(tensor), []).append(name)
    return names


def _read_config(directory: Path) -> dict[str, Any]:
    if not directory.exists():
        raise FrontendError(f"there is no directory '{directory}'.")
    if not directory.is_dir():
        raise FrontendError(f"'{directory}' is a file; expected a checkpoint directory.")
    path = directory / "config.json"
    if not path.exists():
        raise FrontendError(f"'{directory}' has no config.json, so it is no checkpoint directory.")
    return read_json(path)


def _check_model_type(directory: Path, config: dict[str, Any], trust_remote_code: bool) -> None:
    import transformers

    known = transformers.models.auto.configuration_auto.CONFIG_MAPPING
    decoders = transformers.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    name = config.get("model_type")
    if not isinstance(name, str):
        raise FrontendError(f"{directory / 'config.json'} has no 'model_type'.")
    custom = "AutoModelForCausalLM" in (config.get("auto_map") or {})
    if custom and not (trust_remote_code or name in decoders):
        raise FrontendError(
            f"'{directory}' brings its own model code; pass trust_remote_code=True to run it."
        )
    if name not in known and not custom:
        raise FrontendError(
            f"model type '{name}' of '{directory}' is unknown to transformers "
            f"{transformers.__version__}."
        )
    if not custom:
        check_decoder(directory, name)


def _load(directory: Path, trust_remote_code: bool) -> nn.Module:
    from transformers import AutoModelForCausalLM

    with loading(directory):
        model, report = AutoModelForCausalLM.from_pretrained(
            directory,
            dtype="auto",
            local_files_only=True,
            trust_remote_code=trust_remote_code,
            **LOADING,
        )
    check_report(directory, report, "its config.json")
    return as_module(model)


def _load_quantized(
    quantized: Quantized, files: CheckpointFiles, trust_remote_code: bool
) -> nn.Module:
    """The float model, whose parameters are tensors that stand for weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    directory = quantized.directory
    tensors = {key: RecordedTensor(each) for key, each in quantized.weights(files).items()}
    with loading(directory):
        config = AutoConfig.from_pretrained(
            directory, local_files_only=True, trust_remote_code=trust_remote_code
        )
        for each in (config, config.get_text_config()):
            for name in ("quantization_config", "compression_config"):
                if hasattr(each, name):
                    delattr(each, name)
        with torch.device("meta"):  # to know its class, which takes tensors where Auto… does not
            empty = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
        model, report = type(empty).from_pretrained(
            None, config=empty.config, state_dict=tensors, dtype=torch.float32, **LOADING
        )
    check_report(directory, report, "its config.json")
    load_buffers(model)
    return as_module(model)


@contextlib.contextmanager
def known_config(directory: Path, trust_remote_code: bool) -> Iterator[dict[str, Any]]:
    """The config.json of a decoder that transformers knows; while open, transformers is silent.

    Raises FrontendError for any other directory.
    """
    config = _read_config(directory)
    with silent():
        _check_model_type(directory, config, trust_remote_code)
        yield config
