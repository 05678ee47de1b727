"""The model shapes that the benchmarks use, with random weights: only sizes matter for speed."""

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
}  # fmt: skip
