"""Tiny recurrent decoders of transformers."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

__all__ = ["RECURRENT", "recurrent_model"]

_COMMON: dict[str, Any] = {
    "vocab_size": 128, "hidden_size": 64, "num_hidden_layers": 2, "pad_token_id": None,
}  # fmt: skip
_HYBRID: dict[str, Any] = {
    **_COMMON, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}  # fmt: skip
_DELTA: dict[str, Any] = {
    **_HYBRID, "head_dim": 16, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
    "linear_key_head_dim": 16, "linear_value_head_dim": 16,
    "layer_types": ["linear_attention", "full_attention"],
}  # fmt: skip
RECURRENT: dict[str, dict[str, Any]] = {
    "mamba": {**_COMMON, "state_size": 8, "time_step_rank": 8},
    "mamba2": {**_COMMON, "state_size": 8, "num_heads": 4, "head_dim": 32, "n_groups": 2,
               "chunk_size": 8},
    "qwen3_next": {**_DELTA, "num_experts": 4, "num_experts_per_tok": 2,
                   "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32},
    "qwen3_5_text": _DELTA,
    "recurrent_gemma": {**_HYBRID, "num_hidden_layers": 3, "lru_width": 64, "head_dim": 16,
                        "attention_window_size": 8},
    "falcon_h1": {**_HYBRID, "mamba_d_ssm": 128, "mamba_n_heads": 4, "mamba_d_head": "auto",
                  "mamba_d_state": 8, "mamba_chunk_size": 8, "mamba_n_groups": 1},
    "xlstm": {**_COMMON, "hidden_size": 128, "embedding_dim": 128, "num_heads": 4},
}  # fmt: skip
# Parameters with a meaning that noise would destroy: decay rates and step sizes.
_LEFT = ("A_log", "dt_", ".D", "recurrent_param")


def recurrent_model(name: str, **config: Any) -> nn.Module:
    """Float32, eval; the weights are the same in every process, and large enough that logits differ
    clearly from token to token."""
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = {**RECURRENT[name], **config}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **settings))
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                if parameter.dim() > 1 and not any(part in key for part in _LEFT):
                    parameter.copy_(torch.randn_like(parameter) * 1.5 / parameter.shape[-1] ** 0.5)
    model = model.float().eval()
    assert isinstance(model, nn.Module)
    return model
