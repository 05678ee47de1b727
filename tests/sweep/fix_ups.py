"""What the names of configuration fields cannot tell, by model type: most often which kinds of
layers a family has beside those of its default configuration."""

from __future__ import annotations

from typing import Any

__all__ = ["FIX_UPS", "NOT_TEXT_DECODERS"]

NOT_TEXT_DECODERS: dict[str, str] = {
    "gemma3n": "its vision part needs the packages timm and pillow; its text part is gemma3n_text",
    "gemma4_assistant": "it drafts from the hidden states and keys of another model",
    "gemma4_unified_assistant": "it drafts from the hidden states and keys of another model",
    "musicgen": "it predicts several streams of audio codes, not text",
    "musicgen_melody": "it predicts several streams of audio codes, not text",
}
"""Entries of the registry that cannot be run on text alone, and why."""

_SLIDING_THEN_FULL = {
    "num_hidden_layers": 2,
    "layer_types": ["sliding_attention", "full_attention"],
}
_EXPERTS = {"n_routed_experts": 4, "num_experts_per_tok": 2, "first_k_dense_replace": 1}
_LINEAR_THEN_HYBRID = ["linear_attention", "hybrid", "linear_attention", "hybrid"]
_SHARED_KV = {
    "num_hidden_layers": 4,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "num_kv_shared_layers": 2,
}
_TWO_HEAD_DIMS = {**_SHARED_KV, "global_head_dim": 32}
_CHUNKED_THEN_FULL = {
    "num_hidden_layers": 2,
    "layer_types": ["chunked_attention", "full_attention"],
    "no_rope_layers": [1, 0],
    "moe_layers": [1],
}
_SLIDING_LATENT = {
    "swa_num_attention_heads": 4,
    "swa_num_key_value_heads": 4,
    "swa_q_lora_rank": 24,
    "swa_kv_lora_rank": 32,
    "swa_head_dim": 24,
    "swa_qk_nope_head_dim": 16,
    "swa_v_head_dim": 16,
}
_INDEXER = {
    "indexer_n_heads": 4,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 16,
    "indexer_budget": 8,
    "indexer_compress_ratio": 4,
    "ple_layer_ids": [1],
    "ngram_vocab_size_base": 64,
    "eos_token_id": 2,
    "heads_per_ngram": 2,
    "split_ngram_parts": 1,
}
_DECODERS = """bert bert-generation big_bird camembert data2vec-text electra ernie megatron-bert
    rembert roberta roberta-prelayernorm roc_bert roformer xlm-roberta xlm-roberta-xl"""

FIX_UPS: dict[str, dict[str, Any]] = {
    **{name: {"is_decoder": True} for name in _DECODERS.split()},
    "bamba": {"attn_layer_indices": [1], "mamba_d_head": "auto"},
    "blt": {
        "encoder_hash_byte_group_vocab": 100,
        "global_config": {"hidden_size": 128},
        "decoder_config": {"hidden_size_global": 128},
    },
    "cohere": {"logit_scale": 1.0},
    "cohere2": {"logit_scale": 1.0},
    "cohere2_moe": {"logit_scale": 1.0},
    "cohere_compass_text": {
        **_SLIDING_THEN_FULL,
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            "full_attention": {"rope_type": "default", "rope_theta": 1000000.0},
        },
    },
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 10000.0},
        "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "deepseek_v2": {"num_experts_per_tok": 2, "first_k_dense_replace": 1},
    "deepseek_v4": {
        "hc_sinkhorn_iters": 3,
        "compress_rates": {"compressed_sparse_attention": 4, "heavily_compressed_attention": 8},
    },
    "doge": {"keep_window_size": 8},
    "dots1": {**_EXPERTS, "n_shared_experts": 1, **_SLIDING_THEN_FULL},
    "dots3_note": {
        "text_config": _SLIDING_LATENT,
        "vision_config": {"adapter_in_dim": 64, "adapter_out_dim": 64},
        "audio_config": {"adapter_input_size": 64, "adapter_out_dim": 64},
    },
    "dots3_note_text": _SLIDING_LATENT,
    "ernie4_5_moe": {"moe_layer_end_index": 1},
    "falcon_h1": {"mamba_d_ssm": 128, "mamba_d_head": "auto"},
    "flint": {"mlp_only_layers": [0]},
    "gemma3n_text": {
        **_SHARED_KV,
        "intermediate_size": [128] * 4,
        "activation_sparsity_pattern": [0.95, 0.0, 0.95, 0.0],
    },
    "gemma4": {"text_config": _TWO_HEAD_DIMS},
    "gemma4_text": {
        **_TWO_HEAD_DIMS,
        "enable_moe_block": True,
        "num_experts": 4,
        "top_k_experts": 2,
        "moe_intermediate_size": 48,
    },
    "gemma4_unified": {"text_config": _TWO_HEAD_DIMS},
    "gemma4_unified_text": _TWO_HEAD_DIMS,
    "gpt_neo": {"num_layers": 2, "attention_types": [[["global", "local"], 1]]},
    "granitemoehybrid": {
        "layer_types": ["linear_attention", "full_attention"],
        "mamba_d_head": "auto",
    },
    "hrm_text": {"num_layers_per_stack": 1},
    "hunyuan_v1_dense": {"head_dim": 16},
    "hunyuan_v1_moe": {"head_dim": 16},
    "inkling_text": {"logits_mup_width_multiplier": 1.0},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "laguna": {
        **_SLIDING_THEN_FULL,
        "mlp_layer_types": ["dense", "sparse"],
        "num_attention_heads_per_layer": [4, 2],
    },
    "lfm2": {"num_hidden_layers": 2, "layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"num_hidden_layers": 2, "layer_types": ["conv", "full_attention"]},
    "llama4": {"text_config": _CHUNKED_THEN_FULL},
    "llama4_text": _CHUNKED_THEN_FULL,
    "longcat_flash": {"zero_expert_num": 2},
    "mamba2": {"head_dim": 32, "n_groups": 2},
    "mellum": {**_SLIDING_THEN_FULL, "mlp_layer_types": ["sparse", "sparse"]},
    "minimax": {"block_size": 8},
    "minimax_m3_vl_text": {
        "num_hidden_layers": 2,
        "layer_types": ["full_attention", "minimax_m3_sparse"],
        "mlp_layer_types": ["dense", "sparse"],
        "index_block_size": 4,
        "index_topk_blocks": 2,
    },
    "ministral": {"head_dim": 16},
    "mllama": {"text_config": {"num_hidden_layers": 3, "cross_attention_layers": [1]}},
    "nemotron": {"num_key_value_heads": 2},
    "qwen4_exp": {"text_config": _INDEXER},
    "qwen4_exp_text": _INDEXER,
    "recurrent_gemma": {"num_hidden_layers": 3},
    "reformer": {
        "is_decoder": True,
        "axial_pos_shape": [16, 16],
        "axial_pos_embds_dim": [16, 48],
        "local_attn_chunk_length": 8,
        "lsh_attn_chunk_length": 8,
        "num_buckets": 4,
    },
    "smollm3": {
        **_SLIDING_THEN_FULL,
        "no_rope_layers": [1, 0],
        "use_sliding_window": True,
        "sliding_window": 8,
    },
    "xlm": {"causal": True},
    "xmod": {"is_decoder": True, "default_language": "en_XX"},
    "xlstm": {"hidden_size": 128, "embedding_dim": 128},  # its cache rounds widths up to 64
    "zamba": {
        "num_hidden_layers": 4,
        "layers_block_type": _LINEAR_THEN_HYBRID,
        "attention_hidden_size": 128,
        "attention_head_dim": 32,
    },
    "zamba2": {"num_hidden_layers": 4, "layers_block_type": _LINEAR_THEN_HYBRID},
    "zaya": {
        "num_hidden_layers": 2,
        "layer_types": ["hybrid", "hybrid_sliding"],
        "sliding_window": 8,
    },
}
