"""The model shapes that the benchmarks use, with random weights: only sizes matter for speed.

`model_type` is "llama" where a shape does not say; the larger ones are for GPUs. The last two are
recurrent: all of Mamba's layers, and three in four of Qwen 3.5's.
"""

from __future__ import annotations

from typing import Any

__all__ = ["SHAPES"]

_COMMON = {"rms_norm_eps": 1e-5, "bos_token_id": 1, "eos_token_id": 2, "rope_theta": 10000.0}
SHAPES: dict[str, dict[str, Any]] = {
    "tinyllama-1.1b": {
        **_COMMON, "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22,
        "num_attention_heads": 32, "num_key_value_heads": 4, "vocab_size": 32000,
        "max_position_embeddings": 8192, "tie_word_embeddings": False,
    },
    "smollm2-135m": {
        **_COMMON, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
        "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152,
        "max_position_embeddings": 8192, "tie_word_embeddings": True,
    },
    "stories15m": {
        **_COMMON, "hidden_size": 288, "intermediate_size": 768, "num_hidden_layers": 6,
        "num_attention_heads": 6, "num_key_value_heads": 6, "vocab_size": 32000,
        "max_position_embeddings": 1024, "tie_word_embeddings": True,
    },
    "llama-3.1-8b": {
        **_COMMON, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
        "max_position_embeddings": 131072, "tie_word_embeddings": False, "rope_theta": 500000.0,
        "rope_scaling": {
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    },
    "qwen3-0.6b": {
        **_COMMON, "model_type": "qwen3", "hidden_size": 1024, "intermediate_size": 3072,
        "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8,
        "head_dim": 128, "vocab_size": 151936, "max_position_embeddings": 40960,
        "tie_word_embeddings": True, "rope_theta": 1000000.0, "rms_norm_eps": 1e-6,
    },
    "mamba-790m": {
        "model_type": "mamba", "hidden_size": 1536, "intermediate_size": 3072, "expand": 2,
        "num_hidden_layers": 48, "state_size": 16, "conv_kernel": 4, "time_step_rank": 96,
        "layer_norm_epsilon": 1e-5, "residual_in_fp32": True, "use_bias": False,
        "use_conv_bias": True, "vocab_size": 50280, "bos_token_id": 0, "eos_token_id": 0,
        "tie_word_embeddings": True,
    },
    "qwen3.5-0.8b": {
        "model_type": "qwen3_5_text", "hidden_size": 1024, "intermediate_size": 3584,
        "num_hidden_layers": 24, "layer_types": (["linear_attention"] * 3 + ["full_attention"]) * 6,
        "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 256,
        "linear_num_key_heads": 16, "linear_key_head_dim": 128, "linear_num_value_heads": 16,
        "linear_value_head_dim": 128, "linear_conv_kernel_dim": 4, "vocab_size": 248320,
        "max_position_embeddings": 262144, "tie_word_embeddings": True, "rms_norm_eps": 1e-6,
        "rope_parameters": {
            "rope_type": "default", "rope_theta": 10000000.0, "partial_rotary_factor": 0.25,
        },
        "bos_token_id": 1, "eos_token_id": 2,
    },
}  # fmt: skip
