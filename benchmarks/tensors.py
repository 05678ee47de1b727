"""The tensors of a shape's checkpoint: their names, sizes and values.

An architecture is one function here, of its config.json, and one line in ARCHITECTURES. Names are
those of transformers. Read in several environments: numpy is all there is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["ARCHITECTURES", "Tensor", "tensors"]

Sizes = tuple[int, ...]
Array = npt.NDArray[np.float32]
Config = dict[str, Any]


@dataclass(frozen=True)
class Tensor:
    """values: of the sizes, in float32; None: normally distributed, with `deviation`."""

    name: str
    sizes: Sizes
    values: Callable[[Sizes], Array] | None = None
    deviation: float = 0.02


def tensors(config: Config) -> Iterator[Tensor]:
    """All of a checkpoint, layer by layer. config: one of shapes.SHAPES, or part of it."""
    yield from ARCHITECTURES[config.get("model_type", "llama")](config)


def _ones(sizes: Sizes) -> Array:
    return np.ones(sizes, np.float32)


def _zeros(sizes: Sizes) -> Array:
    return np.zeros(sizes, np.float32)


def _log_decays(sizes: Sizes) -> Array:
    """Logarithms of 1, 2, 3 … along the last axis: the decays that S4D and Mamba start from."""
    return np.broadcast_to(np.log(np.arange(1, sizes[-1] + 1, dtype=np.float32)), sizes).copy()


def _time_step_biases(sizes: Sizes) -> Array:
    """softplus of these is 0.001 … 0.1, evenly by logarithm: Mamba's time steps."""
    steps = np.geomspace(1e-3, 1e-1, math.prod(sizes), dtype=np.float32)
    return np.log(np.expm1(steps)).reshape(sizes)


def _convolution(name: str, channels: int, taps: int) -> Tensor:
    """One filter per channel; sums of few terms, which 0.02 would all but silence."""
    return Tensor(name, (channels, 1, taps), deviation=taps**-0.5)


def _llama(config: Config, norm: Callable[[Sizes], Array] = _ones) -> Iterator[Tensor]:
    """Llama, and what has its skeleton; `layer_types` may put other mixers in some layers."""
    hidden, layers = config["hidden_size"], config["num_hidden_layers"]
    kinds = config.get("layer_types", ["full_attention"] * layers)
    yield Tensor("model.embed_tokens.weight", (config["vocab_size"], hidden))
    for i, kind in enumerate(kinds):
        layer = f"model.layers.{i}"
        yield from _MIXERS[kind](config, layer, norm)
        yield from _mlp(config, layer)
        yield Tensor(f"{layer}.input_layernorm.weight", (hidden,), norm)
        yield Tensor(f"{layer}.post_attention_layernorm.weight", (hidden,), norm)
    yield Tensor("model.norm.weight", (hidden,), norm)
    if not config["tie_word_embeddings"]:
        yield Tensor("lm_head.weight", (config["vocab_size"], hidden))


def _attention(config: Config, layer: str, norm: Callable[[Sizes], Array]) -> Iterator[Tensor]:
    """Queries may come with as many gates beside them; heads may have norms."""
    hidden, kind = config["hidden_size"], config.get("model_type", "llama")
    head = config.get("head_dim", hidden // config["num_attention_heads"])
    q, kv = (head * config[f"num_{each}_heads"] for each in ("attention", "key_value"))
    asked = 2 * q if kind in GATED else q
    for name, sizes in (("q", (asked, hidden)), ("k", (kv, hidden)), ("v", (kv, hidden)),
                        ("o", (hidden, q))):  # fmt: skip
        yield Tensor(f"{layer}.self_attn.{name}_proj.weight", sizes)
    if kind in HEAD_NORMS:
        yield Tensor(f"{layer}.self_attn.q_norm.weight", (head,), norm)
        yield Tensor(f"{layer}.self_attn.k_norm.weight", (head,), norm)


def _delta_net(config: Config, layer: str, norm: Callable[[Sizes], Array]) -> Iterator[Tensor]:
    """A gated delta net. Its own norm is scaled by the weight itself, whatever the others' are."""
    hidden, heads = config["hidden_size"], config["linear_num_value_heads"]
    value_head = config["linear_value_head_dim"]
    key, value = config["linear_num_key_heads"] * config["linear_key_head_dim"], heads * value_head
    mixer, mixed = f"{layer}.linear_attn", 2 * key + value
    for name, rows in (("qkv", mixed), ("z", value), ("b", heads), ("a", heads)):
        yield Tensor(f"{mixer}.in_proj_{name}.weight", (rows, hidden))
    yield _convolution(f"{mixer}.conv1d.weight", mixed, config["linear_conv_kernel_dim"])
    yield Tensor(f"{mixer}.A_log", (heads,), _log_decays)
    yield Tensor(f"{mixer}.dt_bias", (heads,), _ones)
    yield Tensor(f"{mixer}.norm.weight", (value_head,), _ones)
    yield Tensor(f"{mixer}.out_proj.weight", (hidden, value))


def _mlp(config: Config, layer: str) -> Iterator[Tensor]:
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    for name, sizes in (("gate", (inner, hidden)), ("up", (inner, hidden)),
                        ("down", (hidden, inner))):  # fmt: skip
        yield Tensor(f"{layer}.mlp.{name}_proj.weight", sizes)


def _mamba(config: Config) -> Iterator[Tensor]:
    hidden, inner, rank, state = (
        config[key] for key in ("hidden_size", "intermediate_size", "time_step_rank", "state_size")
    )
    yield Tensor("backbone.embeddings.weight", (config["vocab_size"], hidden))
    for i in range(config["num_hidden_layers"]):
        layer = f"backbone.layers.{i}"
        yield Tensor(f"{layer}.norm.weight", (hidden,), _ones)
        yield Tensor(f"{layer}.mixer.in_proj.weight", (2 * inner, hidden))
        yield _convolution(f"{layer}.mixer.conv1d.weight", inner, config["conv_kernel"])
        yield Tensor(f"{layer}.mixer.conv1d.bias", (inner,), _zeros)
        yield Tensor(f"{layer}.mixer.x_proj.weight", (rank + 2 * state, inner))
        yield Tensor(f"{layer}.mixer.dt_proj.weight", (inner, rank))
        yield Tensor(f"{layer}.mixer.dt_proj.bias", (inner,), _time_step_biases)
        yield Tensor(f"{layer}.mixer.A_log", (inner, state), _log_decays)
        yield Tensor(f"{layer}.mixer.D", (inner,), _ones)
        yield Tensor(f"{layer}.mixer.out_proj.weight", (hidden, inner))
    yield Tensor("backbone.norm_f.weight", (hidden,), _ones)


_MIXERS = {"full_attention": _attention, "linear_attention": _delta_net}
HEAD_NORMS = ("qwen3", "qwen3_5_text")
GATED = ("qwen3_5_text",)
ARCHITECTURES: dict[str, Callable[[Config], Iterator[Tensor]]] = {
    "llama": _llama,
    "qwen3": _llama,
    "qwen3_5_text": lambda config: _llama(config, _zeros),  # its norms scale by 1 + weight
    "mamba": _mamba,
}
