"""Random-weight decoders of a few families, small enough to capture in a second or two.

Every model has two layers (or what `num_layers=` says), a vocabulary of 128 and a context of 256;
the weights are the same in every process. Keyword arguments replace single configuration values.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from graphwright.ir.schemes import Scheme, dequantize, quantize_weight

__all__ = [
    "MORE_MODELS",
    "TINY_MODELS",
    "random_tokens",
    "round_weights",
    "save_tiny",
    "tiny_model",
]

_COMMON = {"vocab_size": 128, "max_position_embeddings": 256, "pad_token_id": None}
_LLAMA = {
    **_COMMON,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
# family -> (model type in transformers, configuration)
TINY_MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", _LLAMA),
    "qwen2": ("qwen2", {**_LLAMA, "tie_word_embeddings": True}),
    "mistral": ("mistral", {**_LLAMA, "sliding_window": 8}),
    "gpt2": (
        "gpt2",
        {"vocab_size": 128, "n_positions": 256, "n_embd": 64, "n_layer": 2, "n_head": 4},
    ),
    "gemma2": (
        "gemma2",
        {
            **_LLAMA,
            "head_dim": 16,
            "query_pre_attn_scalar": 16,
            "sliding_window": 8,
            "attn_logit_softcapping": 5.0,
            "final_logit_softcapping": 3.0,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
    "opt": (
        "opt",
        {
            "vocab_size": 128,
            "max_position_embeddings": 256,
            "hidden_size": 64,
            "word_embed_proj_dim": 64,
            "ffn_dim": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
        },
    ),
    "falcon": (
        "falcon",
        {
            **_COMMON,
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_kv_heads": 2,
            "new_decoder_architecture": True,
            "ffn_hidden_size": 128,
        },
    ),
    "falcon-old": (
        "falcon",
        {
            **_COMMON,
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "multi_query": True,
            "new_decoder_architecture": False,
            "ffn_hidden_size": 128,
        },
    ),
    "bloom": (
        "bloom",
        {"vocab_size": 128, "hidden_size": 64, "n_layer": 2, "n_head": 4},
    ),
}
_ROPE = {"rope_theta": 10000.0}
_ROUTED = {**_LLAMA, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
# More families, run end to end only.
MORE_MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3": ("qwen3", {**_LLAMA, "head_dim": 16}),
    "gemma": ("gemma", {**_LLAMA, "head_dim": 16}),
    "gemma3": (
        "gemma3_text",
        {
            **_LLAMA,
            "head_dim": 16,
            "query_pre_attn_scalar": 16,
            "sliding_window": 8,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
    "phi": ("phi", {**_LLAMA, "partial_rotary_factor": 0.5}),
    "phi3": ("phi3", {**_LLAMA, "bos_token_id": 1, "eos_token_id": 2}),
    "gpt-neox": (
        "gpt_neox",
        {**_COMMON, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
         "num_attention_heads": 4},
    ),
    "olmo2": ("olmo2", _LLAMA),
    "starcoder2": ("starcoder2", {**_LLAMA, "sliding_window": 8}),
    "stablelm": ("stablelm", _LLAMA),
    "cohere": ("cohere", {**_LLAMA, "logit_scale": 0.25, "use_qk_norm": True}),
    "granite": (
        "granite",
        {**_LLAMA, "attention_multiplier": 0.2, "embedding_multiplier": 3.0,
         "residual_multiplier": 0.5, "logits_scaling": 2.0},
    ),
    "smollm3": ("smollm3", {**_LLAMA, "no_rope_layers": [1, 0]}),
    "mixtral": (
        "mixtral", {**_LLAMA, "num_local_experts": 4, "num_experts_per_tok": 2}
    ),
    "qwen3-moe": ("qwen3_moe", {**_ROUTED, "head_dim": 16, "norm_topk_prob": True}),
    "deepseek-v3": (
        "deepseek_v3",
        {
            **_LLAMA, "num_key_value_heads": 4, "q_lora_rank": 24, "kv_lora_rank": 16,
            "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 12,
            "n_routed_experts": 8, "num_experts_per_tok": 2, "n_group": 4, "topk_group": 2,
            "moe_intermediate_size": 32, "first_k_dense_replace": 1, "n_shared_experts": 1,
        },
    ),
    "gpt-oss": (
        "gpt_oss",
        {**_LLAMA, "head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2,
         "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    # One family in other configurations.
    "llama, linear": (
        "llama", {**_LLAMA, "rope_parameters": {**_ROPE, "rope_type": "linear", "factor": 4.0}}
    ),
    "llama, dynamic": (
        "llama", {**_LLAMA, "rope_parameters": {**_ROPE, "rope_type": "dynamic", "factor": 4.0}}
    ),
    "llama, llama3": (
        "llama",
        {
            **_LLAMA,
            "rope_parameters": {
                **_ROPE, "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
            },
        },
    ),
    "llama, yarn": (
        "llama",
        {
            **_LLAMA,
            "rope_parameters": {
                **_ROPE, "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64
            },
        },
    ),
    # Sequences of the tests are longer than 10 tokens, so that these are the long factors.
    "llama, longrope": (
        "llama",
        {
            **_LLAMA,
            "rope_parameters": {
                **_ROPE, "rope_type": "longrope", "factor": 4.0,
                "original_max_position_embeddings": 10,
                "short_factor": [1.0 + 0.1 * i for i in range(8)],
                "long_factor": [2.0 + i for i in range(8)],
            },
        },
    ),
    "llama, biased and tied": (
        "llama",
        {**_LLAMA, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    ),
    "qwen2, untied": ("qwen2", {**_LLAMA, "tie_word_embeddings": False}),
    "gpt-neox, sequential": (
        "gpt_neox",
        {**_COMMON, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
         "num_attention_heads": 4, "use_parallel_residual": False},
    ),
    "stablelm, parallel": (
        "stablelm", {**_LLAMA, "use_parallel_residual": True, "use_qkv_bias": True}
    ),
}  # fmt: skip
_ALL = {**TINY_MODELS, **MORE_MODELS}
_LAYER_KEYS = ("num_hidden_layers", "n_layer")


def tiny_model(
    name: str, *, seed: int = 0, dtype: torch.dtype = torch.float32, **config: Any
) -> nn.Module:
    """The model called `name` in one of the two tables, in eval mode, weights drawn from `seed`.

    The weights are larger than a fresh model's, so that logits differ clearly from token to token.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    family, settings = _ALL[name]
    settings = {**settings, **config}
    layers = settings.pop("num_layers", None)
    if layers is not None:
        settings[next(key for key in _LAYER_KEYS if key in settings)] = layers
        if "layer_types" in settings and "layer_types" not in config:
            settings["layer_types"] = [settings["layer_types"][i % 2] for i in range(layers)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **settings))
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                spread = 0.5 if parameter.dim() == 1 else 3.0 / parameter.shape[-1] ** 0.5
                noise = torch.randn_like(parameter) * spread
                is_scale = parameter.dim() == 1 and key.endswith("weight")
                parameter.copy_(noise * 0.3 + 1.0 if is_scale else noise * 0.5)
    model = model.to(dtype).eval()
    assert isinstance(model, nn.Module)
    return model


def save_tiny(name: str, directory: Path | str, **config: Any) -> Path:
    """Writes `tiny_model(name, **config)` as a checkpoint directory (safetensors); returns it."""
    directory = Path(directory)
    tiny_model(name, **config).save_pretrained(directory)  # type: ignore[operator]
    return directory


def round_weights(model: nn.Module, recipe: str) -> None:
    """Every matrix of `model` becomes what its integers by a scheme such as w4g128 stand for."""
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2:
                scheme = Scheme.parse(recipe).for_inputs(weight.shape[1])
                weight.copy_(dequantize(*quantize_weight(weight, str(scheme))))


def continued_logits(model: nn.Module, prompt: list[int], tokens: list[int]) -> torch.Tensor:
    """The logits [len(tokens), vocab] with which `model` goes on from `prompt` by these tokens."""
    with torch.no_grad():
        logits: torch.Tensor = model(torch.tensor([[*prompt, *tokens]]), use_cache=False).logits
    return logits[0, len(prompt) - 1 : -1]


def random_tokens(length: int, *, seed: int = 0, vocab_size: int = 128) -> torch.Tensor:
    """`length` token ids, int64, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, vocab_size, (length,), generator=generator)
