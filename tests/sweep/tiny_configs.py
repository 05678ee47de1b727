"""A tiny configuration of every entry of transformers' causal-LM registry.

The default configuration is shrunk by field names, in the nested text, vision and audio
configurations too. Fields that hold one value a layer (`layer_types` and its like) are thinned out
jointly: the first layer of every kind stays, in order, so that every layer type of the family
occurs. Sliding windows are 8, shorter than the prompts. `FIX_UPS` holds what names cannot tell.
"""

from __future__ import annotations

from typing import Any

from fix_ups import FIX_UPS
from transformers import AutoConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

__all__ = ["MODEL_TYPES", "layer_kinds", "tiny_config"]

MODEL_TYPES: dict[str, str] = dict(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
"""Model type in transformers -> the class of its causal language model."""

CONTEXT = 256
VOCABULARY = 128
MOST_LAYERS = 4

# value -> the fields that get it, where the default has a number there
_BY_VALUE: tuple[tuple[int, str], ...] = (
    (VOCABULARY, """vocab_size vocab_size_per_layer_input pronunciation_vocab_size
        shape_vocab_size"""),
    (64, """hidden_size d_model n_embd emb_dim embedding_dim embed_dim word_embed_proj_dim
        embedding_size attention_hidden_size lru_width"""),
    (128, """intermediate_size ffn_dim encoder_ffn_dim decoder_ffn_dim d_inner dim_ff dff
        ffn_hidden_size intermediate_size_mlp feed_forward_size dense_intermediate_size n_inner"""),
    (48, """moe_intermediate_size shared_expert_intermediate_size shared_intermediate_size
        moe_shared_expert_intermediate_size shared_experts_intermediate_size
        expert_ffn_hidden_size"""),
    (16, """head_dim attention_head_size kv_channels swa_head_dim qk_nope_head_dim v_head_dim
        index_head_dim linear_key_head_dim linear_value_head_dim linear_head_dim dim_head d_head
        o_lora_rank hc_lowrank d_rel mamba_d_state ssm_state_size state_size router_hidden_size
        adapter_rank
        ple_embed_dim index_n_heads hidden_size_per_layer_input laurel_rank
        pronunciation_embed_dim shape_embed_dim"""),
    (8, """qk_rope_head_dim rotary_dim sliding_window sliding_window_size index_topk window_size
        attention_window_size attention_chunk_size local_attention time_step_rank
        floor_scale chunk_size mamba_chunk_size gated_norm_rank"""),
    (24, "q_lora_rank"),
    (32, "kv_lora_rank"),
    (4, """num_attention_heads n_head n_heads num_heads attention_heads encoder_attention_heads
        decoder_attention_heads num_encoder_attention_heads num_decoder_attention_heads
        swa_num_attention_heads num_local_experts n_routed_experts num_experts moe_num_experts
        linear_num_heads linear_num_value_heads mamba_n_heads mamba_num_heads n_mamba_heads"""),
    (2, """num_key_value_heads num_kv_heads swa_num_key_value_heads num_experts_per_tok
        num_experts_per_token moe_topk moe_k top_k_experts linear_num_key_heads
        num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers
        num_encoder_layers num_decoder_layers o_groups n_groups
        sliding_window_pattern _sliding_window_pattern layer_group_size"""),
    (1, "first_k_dense_replace num_dense_layers moe_layer_start_index num_mem_blocks"),
    (CONTEXT, """max_position_embeddings n_positions n_ctx max_seq_len model_max_length
        context_length max_target_positions original_max_position_embeddings rel_extent"""),
)  # fmt: skip
_VALUES = {name: value for value, names in _BY_VALUE for name in names.split()}
_LAYER_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers")
_SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2}
_FIRST_OTHER_SPECIAL = 112


def tiny_config(model_type: str) -> Any:
    """The tiny configuration of `model_type`, a key of MODEL_TYPES."""
    settings = _shrunk(AutoConfig.for_model(model_type))
    _merge(settings, FIX_UPS.get(model_type, {}))
    return AutoConfig.for_model(model_type, **settings)


def layer_kinds(config: Any) -> str:
    """What the layers are, in order, as far as the configuration says: `full, sliding+moe`."""
    text = config.get_text_config(decoder=True)
    found = _per_layer(text)
    kinds = [values for values in found.values() if all(isinstance(each, str) for each in values)]
    if not kinds:
        return f"{_layers(text)} layers"
    return ", ".join("+".join(dict.fromkeys(layer)) for layer in zip(*kinds, strict=True))


def _merge(settings: dict[str, Any], fix_ups: dict[str, Any]) -> None:
    for key, value in fix_ups.items():
        if isinstance(value, dict) and isinstance(settings.get(key), dict):
            _merge(settings[key], value)
        else:
            settings[key] = value


def _shrunk(config: Any) -> dict[str, Any]:
    """The fields of `config` that must change, and their values."""
    settings: dict[str, Any] = {}
    for name, value in _fields(config).items():
        held = getattr(config, name) if isinstance(value, dict) else value
        if hasattr(held, "to_dict"):
            settings[name] = {"model_type": held.model_type, **_shrunk(held)}
        elif isinstance(value, bool) or not isinstance(value, int):
            continue
        elif name.endswith(("token_id", "token_index")):
            settings[name] = _special_token(name, len(settings))
        elif name == "qk_head_dim":
            settings[name] = 0
        elif name in _VALUES:
            settings[name] = min(value, _VALUES[name])
    _adjust_heads(settings, config)
    _adjust_experts(settings, config)
    _thin_out_layers(settings, config)
    return settings


def _fields(config: Any) -> dict[str, Any]:
    """What the configuration declares; what it derives from that is left to it."""
    values = config.to_dict()
    stored = {
        name: config.attribute_map.get(name, name) for name in type(config).__dataclass_fields__
    }
    return {name: values[key] for name, key in stored.items() if key in values}


def _special_token(name: str, salt: int) -> int:
    return _SPECIAL.get(name, _FIRST_OTHER_SPECIAL + salt % (VOCABULARY - _FIRST_OTHER_SPECIAL))


def _adjust_heads(settings: dict[str, Any], config: Any) -> None:
    """Latent attention has as many key as query heads; the query's head dim is the parts' sum."""
    if "kv_lora_rank" in settings and "num_key_value_heads" in settings:
        settings["num_key_value_heads"] = settings["num_attention_heads"]
    if {"head_dim", "qk_rope_head_dim"} <= settings.keys():
        rotated = config.head_dim == config.qk_rope_head_dim
        settings["head_dim"] = settings["qk_rope_head_dim"] if rotated else settings["head_dim"]
    if {"qk_head_dim", "qk_nope_head_dim", "qk_rope_head_dim"} <= settings.keys():
        settings["qk_head_dim"] = settings["qk_nope_head_dim"] + settings["qk_rope_head_dim"]


def _adjust_experts(settings: dict[str, Any], config: Any) -> None:
    """Two groups of four experts, one chosen, where there are groups."""
    if (getattr(config, "n_group", None) or 1) > 1:
        settings["n_group"], settings["topk_group"] = 2, 1
        for name in ("n_routed_experts", "num_experts"):
            if name in settings:
                settings[name] = 8


def _thin_out_layers(settings: dict[str, Any], config: Any) -> None:
    lists = _per_layer(config)
    count_name = next((name for name in _LAYER_COUNTS if name in settings), None)
    if not lists or count_name is None:
        return
    rows = list(zip(*lists.values(), strict=True))
    kept: list[int] = []
    for number, row in enumerate(rows):
        new = any(all(rows[k][i] != value for k in kept) for i, value in enumerate(row))
        unseen = all(rows[k] != row for k in kept)
        if new or (unseen and len(kept) < MOST_LAYERS):
            kept.append(number)
    if len(kept) == 1:
        kept = [kept[0], kept[0]]
    settings[count_name] = len(kept)
    for name, values in lists.items():
        settings[name] = [values[number] for number in kept]


def _per_layer(config: Any) -> dict[str, list[Any]]:
    """Fields of simple values, one for each layer."""
    count = _layers(config)
    return {
        name: value
        for name, value in config.to_dict().items()
        if isinstance(value, list) and len(value) == count > 1 and value != list(range(count))
        and all(isinstance(each, (str, int)) for each in value)
    }  # fmt: skip


def _layers(config: Any) -> int:
    values = (getattr(config, name, None) for name in _LAYER_COUNTS)
    return next((value for value in values if isinstance(value, int)), 0)
