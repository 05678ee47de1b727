"""The model's configuration: transformers makes it of the header, and it must say what that says.

transformers reads the keys that it knows for an architecture and passes over the rest, some of
which changes what a model computes. So each key is looked up in the configuration that was made:
one that says something else is set to what the file says, and one that has no place is refused.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFWriter

from graphwright.frontend.gguf_files.reading import GgufFile
from graphwright.frontend.gguf_files.rope_settings import settle_rope
from graphwright.frontend.transformers_loading import check_decoder, loading
from graphwright.ir.errors import FrontendError

__all__ = ["model_config"]

_VOCABULARY = "tokenizer.ggml.tokens"
_READ_ALWAYS = {  # by transformers, for every architecture, and shapes must fit them
    "embedding_length", "block_count", "feed_forward_length", "vocab_size",
    "attention.head_count", "attention.head_count_kv", "ssm.conv_kernel", "ssm.inner_size",
    "ssm.state_size", "ssm.time_step_rank", "shortconv.l_cache",
}  # fmt: skip
_WITHOUT_EFFECT = {"tensor_data_layout", "rope.scaling.finetuned", "nextn_predict_layers"}
_MAY_BE_MISSING = {"context_length"}  # from the configuration
_HEAD_LENGTHS = ("attention.key_length", "attention.value_length")
_PATTERN = "attention.sliding_window_pattern"
_ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "context_length": ("max_position_embeddings", "n_positions"),
    "attention.layer_norm_rms_epsilon": ("rms_norm_eps", "norm_eps", "layer_norm_epsilon"),
    "attention.layer_norm_epsilon": (
        "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps",
    ),
    "attention.key_length": ("global_head_dim", "head_dim"),
    "attention.value_length": ("global_head_dim", "v_head_dim", "head_dim"),
    "attention.key_length_swa": ("head_dim",),
    "attention.value_length_swa": ("head_dim",),
    "attention.sliding_window": ("sliding_window",),
    "attn_logit_softcapping": ("attn_logit_softcapping",),
    "final_logit_softcapping": ("final_logit_softcapping",),
    "logit_scale": ("logit_scale",),
    "use_parallel_residual": ("use_parallel_residual", "parallel_attn"),
    "expert_count": ("num_experts", "num_local_experts"),
    "expert_used_count": ("num_experts_per_tok",),
    "expert_feed_forward_length": ("moe_intermediate_size", "intermediate_size"),
    "expert_shared_feed_forward_length": ("shared_expert_intermediate_size",),
    "expert_weights_norm": ("norm_topk_prob",),
}  # fmt: skip
"""What configurations call a key: the first attribute that there is."""
_NOTHING = {"attention.sliding_window": 0, "expert_count": 0, "expert_used_count": 0,
            "attention.causal": True}  # fmt: skip
"""Values that ask for nothing."""


def _head_length(config: Any) -> int:
    """The channels of a head, which configurations say or leave to be computed."""
    said = getattr(config, "head_dim", None)
    return int(said or config.hidden_size // config.num_attention_heads)


def _layer_types(pattern: Any, layers: int) -> list[str]:
    """pattern: for each layer, has it a window? Or every which layer has none."""
    windows = pattern if isinstance(pattern, list) else [(i + 1) % pattern for i in range(layers)]
    return ["sliding_attention" if each else "full_attention" for each in windows]


class _Noting(dict[str, Any]):
    """A dictionary that notes which keys were asked for."""

    def __init__(self, items: dict[str, Any]) -> None:
        super().__init__(items)
        self.noted: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        self.noted.add(key)
        if key not in self:
            raise LookupError(f"its header has no {key}")
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self.noted.add(key)
        return super().get(key, default)


def model_config(file: GgufFile) -> tuple[Any, dict[str, Any]]:
    """The configuration of the model in `file`, and the values that transformers made it of.

    Raises FrontendError for architectures that transformers does not read, for models that are no
    decoders, and for keys of the header that the configuration has no place for.
    """
    from transformers.integrations.gguf import GGUF_CONFIG_ARCHS

    _check_architecture(file)
    _check_layers(file)
    settled: set[str] = set()
    with loading(file.path):
        if file.architecture in GGUF_CONFIG_ARCHS:
            noting = _Noting(file.metadata)
            values = GGUF_CONFIG_ARCHS[file.architecture](noting, tuple(file.tensors))
            settled = noting.noted
        else:
            values = _read_values(file)
    values = {**_defaults(file), **values, "dtype": "float32"}
    check_decoder(file.path, str(values["model_type"]))
    with loading(file.path):
        config = _configuration(values)
    _settle(file, config, settled)
    _check_scale(file, config)
    return config, values


def _check_layers(file: GgufFile) -> None:
    """Raises FrontendError where the header does not say how many layers there are, or more than
    tensors: damaged ones ask for millions."""
    key = f"{file.architecture}.block_count"
    layers = file.metadata.get(key)
    if layers is None:
        raise FrontendError(f"'{file.path}' does not say how many layers it has ({key}).")
    if not isinstance(layers, int) or not 0 <= layers <= len(file.tensors):
        raise FrontendError(
            f"'{file.path}' says {key} = {layers}, and its files hold {len(file.tensors)} tensors."
        )


def _defaults(file: GgufFile) -> dict[str, Any]:
    """What no class of configurations shall choose where the header does not say it."""
    found: dict[str, Any] = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    size = file.metadata.get(f"{file.architecture}.vocab_size", file.metadata.get(_VOCABULARY))
    return found if size is None else {**found, "vocab_size": size}


def _check_scale(file: GgufFile, config: Any) -> None:
    """Raises FrontendError where attention scores are scaled by what only code knows."""
    scalar, head = getattr(config, "query_pre_attn_scalar", None), getattr(config, "head_dim", None)
    if scalar is not None and scalar != head:
        raise FrontendError(
            f"'{file.path}' does not say what its attention scores are scaled by: transformers "
            f"would take the square root of {scalar}, and heads have {head} channels. Give the "
            "original checkpoint."
        )


def _check_architecture(file: GgufFile) -> None:
    from transformers import __version__
    from transformers.integrations.gguf import GGUF_CONFIG_ARCHS
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

    names = {name.replace("_", "") for name in GGUF_SUPPORTED_ARCHITECTURES} - {"general"}
    names = names.union(GGUF_CONFIG_ARCHS) - {"tokenizer"}
    if file.architecture.replace("-", "").replace("_", "") not in names:
        raise FrontendError(
            f"'{file.path}' is of the architecture '{file.architecture}', whose GGUF files "
            f"transformers {__version__} does not read; it reads {', '.join(sorted(names))}. Give "
            "the original checkpoint and let graphwright quantize it."
        )


def _configuration(values: dict[str, Any]) -> Any:
    from transformers import CONFIG_MAPPING

    return CONFIG_MAPPING[values["model_type"]].from_dict(dict(values))


def _read_values(file: GgufFile) -> dict[str, Any]:
    """What transformers' reader makes of the header.

    It gets a file with the header alone: no vocabulary, which it takes seconds to count, and with
    the names of the tensors of all parts.
    """
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    with tempfile.TemporaryDirectory(prefix="graphwright-") as folder:
        path = Path(folder) / "header.gguf"
        _write_header(file, path)
        values: dict[str, Any] = load_gguf_checkpoint(path, return_tensors=False)["config"]
    return values


def _write_header(file: GgufFile, path: Path) -> None:
    writer = GGUFWriter(path, file.architecture)
    size = f"{file.architecture}.vocab_size"
    given = dict(file.metadata)
    if _VOCABULARY in given:
        given.setdefault(size, given[_VOCABULARY])
    for key, value in given.items():
        if key == "general.architecture" or key.startswith(("split.", "tokenizer.chat")):
            continue
        if isinstance(value, list):
            if len(value) and not key.startswith("tokenizer."):
                writer.add_array(key, value)
        elif key not in (_VOCABULARY, "tokenizer.ggml.merges"):
            _add(writer, key, value)
    for name in file.tensors:
        writer.add_tensor(name, np.zeros(1, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add(writer: GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_int64(key, value) if value < 0 else writer.add_uint64(key, value)
    elif isinstance(value, float):
        writer.add_float64(key, value)
    else:
        writer.add_string(key, str(value))


def _settle(file: GgufFile, config: Any, settled: set[str]) -> None:
    """Makes `config` say what the header says. Raises FrontendError for what it cannot say."""
    prefix = f"{file.architecture}."
    rope: dict[str, Any] = {}
    for key, value in file.metadata.items():
        if not key.startswith(prefix) or key in settled:
            continue
        short = key.removeprefix(prefix)
        if short in _READ_ALWAYS or short in _WITHOUT_EFFECT:
            continue
        if short.startswith("rope."):
            rope[short.removeprefix("rope.")] = value
            continue
        if short in _NOTHING and value == _NOTHING[short]:
            continue
        if short in _HEAD_LENGTHS and value == _head_length(config):
            continue
        if short == _PATTERN and getattr(config, "layer_types", None):
            config.layer_types = _layer_types(value, len(config.layer_types))
            continue
        names = [name for name in _ATTRIBUTES.get(short, ()) if hasattr(config, name)]
        if not names and short in _MAY_BE_MISSING:
            continue
        if not names:
            raise FrontendError(
                f"'{file.path}' says {key} = {value}, and the configuration that transformers "
                f"makes of it ({type(config).__name__}) has no place for it, so the model would "
                "compute something else. Give the original checkpoint."
            )
        setattr(config, names[0], value)
    settle_rope(file, config, rope)
