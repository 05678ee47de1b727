"""What llama.cpp wants of each architecture: metadata, names of tensors, and their formats."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["LAYOUTS", "Layout"]

Array = npt.NDArray[np.float32]
Config = dict[str, Any]


@dataclass(frozen=True)
class Layout:
    """metadata: of a config.json; keys without the architecture. outside, inside: tensors of the
    model and of a layer, from the checkpoint's name (without prefix, `.weight` and `.bias`) to the
    name here. f32: matrices of a layer that are not stored in 16 bits. changed: what is stored
    otherwise than in the checkpoint, by names here.
    """

    architecture: str
    metadata: Callable[[Config], Config]
    outside: dict[str, str]
    inside: dict[str, str]
    f32: tuple[str, ...] = ()
    changed: dict[str, Callable[[Array], Array]] = field(default_factory=dict)

    def place(self, name: str) -> tuple[str, str]:
        """(`blk.N.` or nothing, name here) of a tensor of the checkpoint."""
        stem = name.removesuffix(".weight").removesuffix(".bias")
        ending = name[len(stem) :]
        if layer := re.fullmatch(r"\w+\.layers\.(\d+)\.(.*)", stem):
            return f"blk.{layer[1]}.", self.inside[layer[2]] + ending
        return "", self.outside[stem] + ending

    def stored(self, name: str, values: Array) -> npt.NDArray[Any]:
        """The values of the tensor `name`, here, as they are stored."""
        values = self.changed.get(name, lambda same: same)(values)
        return values if values.ndim == 1 or name in self.f32 else values.astype(np.float16)


def _attention(config: Config) -> Config:
    heads = config["num_attention_heads"]
    dim = config.get("head_dim", config["hidden_size"] // heads)
    return {
        "context_length": config["max_position_embeddings"],
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": heads,
        "attention.head_count_kv": config["num_key_value_heads"],
        "attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
        "attention.key_length": dim,
        "attention.value_length": dim,
    }


def _llama(config: Config) -> Config:
    dim = config["hidden_size"] // config["num_attention_heads"]
    rope = {"rope.freq_base": config["rope_theta"], "rope.dimension_count": dim}
    return {**_attention(config), **rope}


def _qwen3_5(config: Config) -> Config:
    rope = config["rope_parameters"]
    turned = int(config["head_dim"] * rope["partial_rotary_factor"])
    return {
        **_attention(config),
        "rope.freq_base": rope["rope_theta"],
        "rope.dimension_count": turned,
        "rope.dimension_sections": [11, 11, 10, 0],  # text has the same position in all of them
        "full_attention_interval": config["layer_types"].index("full_attention") + 1,
        "ssm.conv_kernel": config["linear_conv_kernel_dim"],
        "ssm.state_size": config["linear_key_head_dim"],
        "ssm.group_count": config["linear_num_key_heads"],
        "ssm.time_step_rank": config["linear_num_value_heads"],
        "ssm.inner_size": config["linear_num_value_heads"] * config["linear_value_head_dim"],
    }


def _mamba(config: Config) -> Config:
    return {
        "context_length": 1 << 20,
        "feed_forward_length": 0,
        "attention.head_count": 0,
        "attention.layer_norm_rms_epsilon": config["layer_norm_epsilon"],
        "ssm.conv_kernel": config["conv_kernel"],
        "ssm.inner_size": config["intermediate_size"],
        "ssm.state_size": config["state_size"],
        "ssm.time_step_rank": config["time_step_rank"],
        "ssm.dt_b_c_rms": False,
    }


def _filters(values: Array) -> Array:
    """[channels, 1, taps] → [channels, taps]."""
    return values.squeeze(1)


def _decays(values: Array) -> Array:
    """A from its logarithm."""
    return -np.exp(values)


def _scales(values: Array) -> Array:
    """What a norm multiplies with, where the checkpoint has it less 1."""
    return values + 1


_OUTSIDE = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
}  # fmt: skip
_INSIDE = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}  # fmt: skip
LAYOUTS = {
    "llama": Layout("llama", _llama, _OUTSIDE, _INSIDE),
    "qwen3_5_text": Layout(
        "qwen35", _qwen3_5, _OUTSIDE,
        {
            **_INSIDE, "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
            "post_attention_layernorm": "post_attention_norm",
            "linear_attn.in_proj_qkv": "attn_qkv", "linear_attn.in_proj_z": "attn_gate",
            "linear_attn.in_proj_b": "ssm_beta", "linear_attn.in_proj_a": "ssm_alpha",
            "linear_attn.conv1d": "ssm_conv1d", "linear_attn.A_log": "ssm_a",
            "linear_attn.dt_bias": "ssm_dt.bias", "linear_attn.norm": "ssm_norm",
            "linear_attn.out_proj": "ssm_out",
        },
        f32=("ssm_conv1d.weight",),
        changed={
            "ssm_conv1d.weight": _filters, "ssm_a": _decays,
            **dict.fromkeys(
                ("attn_norm.weight", "post_attention_norm.weight", "attn_q_norm.weight",
                 "attn_k_norm.weight", "output_norm.weight"), _scales,
            ),
        },
    ),
    "mamba": Layout(
        "mamba", _mamba, {"backbone.embeddings": "token_embd", "backbone.norm_f": "output_norm"},
        {
            "norm": "attn_norm", "mixer.in_proj": "ssm_in", "mixer.conv1d": "ssm_conv1d",
            "mixer.x_proj": "ssm_x", "mixer.dt_proj": "ssm_dt", "mixer.A_log": "ssm_a",
            "mixer.D": "ssm_d", "mixer.out_proj": "ssm_out",
        },
        f32=("ssm_conv1d.weight", "ssm_a"),
        changed={"ssm_conv1d.weight": _filters, "ssm_a": _decays},
    ),
}  # fmt: skip
