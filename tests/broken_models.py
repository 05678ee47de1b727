"""Small decoders with one sin each: every one looks at other tokens, or at its place in the step,
in a way that no cache can serve. And their near misses, which do not.

A sin is a function that replaces one part of an otherwise plain decoder; the words beside it are
what the refusal must say first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["BROKEN", "SOUND", "Case", "Decoder", "build"]

VOCAB, WIDTH, HEADS, CONTEXT = 32, 16, 2, 64
_SIZE = WIDTH // HEADS


class Decoder(nn.Module):
    """Learned positions, one layer of causal attention and an MLP, a head. Parts may be replaced.

    places: (model, tokens [1, T]) → positions [1, T]. stream: (model, h [1, T, W], tokens) → h,
    after the attention. attend: (model, q, k, v [1, H, T, D], h, tokens) → [1, H, T, D].
    result: (model, logits [1, T, V]) → logits. layers: further modules, parameters and buffers.
    """

    def __init__(self, layers: Callable[[], dict[str, Any]] = dict, **parts: Any) -> None:
        super().__init__()
        self.config = SimpleNamespace(max_position_embeddings=CONTEXT)
        self.parts = parts
        self.table = nn.Embedding(VOCAB, WIDTH)
        self.places = nn.Embedding(CONTEXT, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, VOCAB, bias=False)
        for name, value in layers().items():
            if isinstance(value, nn.Parameter) or not isinstance(value, Tensor):
                setattr(self, name, value)
            else:
                self.register_buffer(name, value)

    def forward(self, tokens: Tensor) -> Any:
        """Logits [1, T, V] of tokens [1, T]."""
        places = self._part("places", torch.arange(tokens.shape[1])[None], tokens)
        h = self.table(tokens) + self.places(places)
        q, k, v = (
            x.view(1, -1, HEADS, _SIZE).transpose(1, 2)
            for x in self.qkv(self.norm(h)).chunk(3, dim=-1)
        )
        if "attend" in self.parts:
            y = self.parts["attend"](self, q, k, v, h, tokens)
        else:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        h = h + self.out(y.transpose(1, 2).reshape(1, -1, WIDTH))
        h = self._part("stream", h, tokens)
        h = h + self.down(F.gelu(self.up(h)))
        return self._part("result", self.head(h))

    def _part(self, name: str, value: Any, *more: Any) -> Any:
        if name not in self.parts:
            return value
        if name == "places":
            return self.parts[name](self, *more)
        return self.parts[name](self, value, *more)


@dataclass
class Case:
    """What a decoder does instead of `part`, and what the first sentence of the refusal says."""

    part: str
    function: Callable[..., Any]
    words: tuple[str, ...] = ()
    layers: Callable[[], dict[str, Any]] = field(default=dict)


BROKEN: dict[str, Case] = {}
SOUND: dict[str, Case] = {}


def build(case: Case) -> Decoder:
    """The decoder of `case`, its weights drawn from a fixed seed, logits clearly apart."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Decoder(case.layers, **{case.part: case.function}).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(0, 0.4)
    return model


def broken(part: str, *words: str, **layers: Callable[[], Any]) -> Callable[..., Any]:
    """Registers a sin: the part it stands for, what the refusal says, the layers it needs."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        BROKEN[function.__name__] = Case(
            part, function, words, lambda: {name: make() for name, make in layers.items()}
        )
        return function

    return register


def sound(part: str, **layers: Callable[[], Any]) -> Callable[..., Any]:
    """Registers a near miss: what looks like a sin and acts on each token alone."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        SOUND[function.__name__] = Case(
            part, function, (), lambda: {name: make() for name, make in layers.items()}
        )
        return function

    return register


# ---- the stream looks at other tokens


@broken("stream", "aten.mean.dim", "reduces over the token axis")
def mean_over_the_sequence(m: Any, h: Tensor, ids: Tensor) -> Any:
    return h + h.mean(1, keepdim=True)


@broken("stream", "aten.amax", "reduces over the token axis")
def max_over_the_sequence(m: Any, h: Tensor, ids: Tensor) -> Any:
    return h + h.amax(1, keepdim=True)


@broken("stream", "amax", "reduces over the token axis")
def max_with_its_place_over_the_sequence(m: Any, h: Tensor, ids: Tensor) -> Any:
    return h + h.max(1, keepdim=True).values


@broken("stream", "aten.cumsum", "works along the token axis")
def running_sum(m: Any, h: Tensor, ids: Tensor) -> Any:
    return h + h.cumsum(1)


@broken("stream", "aten.cummax", "works along the token axis")
def running_maximum(m: Any, h: Tensor, ids: Tensor) -> Any:
    return h + h.cummax(1).values


@broken("stream", "batch_norm", "takes its statistics from the token axis")
def batch_norm_over_tokens(m: Any, h: Tensor, ids: Tensor) -> Any:
    return h + F.batch_norm(h[0], None, None, training=True)[None]


@broken("stream", "group_norm", "normalizes over the token axis")
def group_norm_over_tokens(m: Any, h: Tensor, ids: Tensor) -> Any:
    return h + F.group_norm(h.transpose(1, 2), 4).transpose(1, 2)


@broken("stream", "instance_norm", "takes its statistics from the token axis")
def instance_norm_over_tokens(m: Any, h: Tensor, ids: Tensor) -> Any:
    return h + F.instance_norm(h.transpose(1, 2)).transpose(1, 2)


@broken("stream", "aten.layer_norm", "normalizes over the token axis")
def layer_norm_over_tokens(m: Any, h: Tensor, ids: Tensor) -> Any:
    return h + F.layer_norm(h.transpose(1, 2), (h.shape[1],)).transpose(1, 2)


@broken("stream", "aten.var", "reduces over the token axis")
def variance_over_tokens(m: Any, h: Tensor, ids: Tensor) -> Any:
    return h / (h.var(1, keepdim=True) + 1)


@broken("stream", "aten.linalg_vector_norm", "reduces over the token axis")
def norm_over_tokens(m: Any, h: Tensor, ids: Tensor) -> Any:
    return F.normalize(h, dim=1)


@broken("stream", "aten.softmax", "works along the token axis")
def softmax_over_tokens(m: Any, h: Tensor, ids: Tensor) -> Any:
    return h + h.softmax(1)


@broken("stream", "aten.slice", "takes some of the tokens")
def first_token_added_to_all(m: Any, h: Tensor, ids: Tensor) -> Any:
    return h + h[:, :1]


@broken("stream", "aten.select", "takes one of the tokens")
def last_token_added_to_all(m: Any, h: Tensor, ids: Tensor) -> Any:
    return h + h[:, -1].unsqueeze(1)


@broken("stream", "aten.slice", "takes some of the tokens")
def first_token_expanded(m: Any, h: Tensor, ids: Tensor) -> Any:
    return h * h[:, :1].expand(1, h.shape[1], WIDTH).sigmoid()


@broken("stream", "h.roll(1, 1)", "computes with the number of tokens")
def roll_of_tokens(m: Any, h: Tensor, ids: Tensor) -> Any:
    return h + h.roll(1, 1)


@broken("stream", "aten.slice", "takes some of the tokens")
def shift_by_cat(m: Any, h: Tensor, ids: Tensor) -> Any:
    return h + torch.cat([h[:, :1], h[:, :-1]], 1)


@broken("stream", "aten.flip", "works along the token axis")
def flip_of_tokens(m: Any, h: Tensor, ids: Tensor) -> Any:
    return h + h.flip(1)


@broken("stream", "aten.sort", "works along the token axis")
def sort_of_tokens(m: Any, h: Tensor, ids: Tensor) -> Any:
    return h + h.sort(1).values


@broken("stream", "aten.topk", "works along the token axis")
def best_token(m: Any, h: Tensor, ids: Tensor) -> Any:
    return h + h.topk(1, dim=1).values


@broken("stream", "conv1d", "not causal", conv=lambda: nn.Conv1d(WIDTH, WIDTH, 3, padding=1))
def convolution_that_sees_the_next_token(m: Any, h: Tensor, ids: Tensor) -> Any:
    return h + m.conv(h.transpose(1, 2)).transpose(1, 2)


@broken(
    "stream", "conv1d", "has stride 2",
    conv=lambda: nn.Conv1d(WIDTH, WIDTH, 2, stride=2, padding=1),
)  # fmt: skip
def convolution_with_a_stride(m: Any, h: Tensor, ids: Tensor) -> Any:
    y = m.conv(h.transpose(1, 2)).transpose(1, 2)
    return h + y.mean(1, keepdim=True)


@broken(
    "stream",
    "the number of tokens became a constant",
    "m.rnn(h)",
    rnn=lambda: nn.GRU(WIDTH, WIDTH, batch_first=True),
)
def gated_recurrence(m: Any, h: Tensor, ids: Tensor) -> Any:
    return h + m.rnn(h)[0]


@broken(
    "stream",
    "the number of tokens became a constant",
    "m.rnn(h)",
    rnn=lambda: nn.RNN(WIDTH, WIDTH, batch_first=True),
)
def plain_recurrence(m: Any, h: Tensor, ids: Tensor) -> Any:
    return h + m.rnn(h)[0]


@broken("stream", "aten._fft", "works along the token axis")
def fourier_mixing(m: Any, h: Tensor, ids: Tensor) -> Any:
    return h + torch.fft.fft(h, dim=1).real


@broken(
    "stream",
    "mixer",
    "depends on the number of tokens",
    mixer=lambda: nn.Parameter(torch.zeros(CONTEXT, CONTEXT)),
)
def learned_matrix_over_tokens(m: Any, h: Tensor, ids: Tensor) -> Any:
    length = h.shape[1]
    return h + torch.einsum("btd,ts->bsd", h, m.mixer[:length, :length])


@broken("stream", "contracts the token axis")
def product_over_tokens(m: Any, h: Tensor, ids: Tensor) -> Any:
    return h @ (h.transpose(1, 2) @ h)


@broken("stream", "aten.gather", "chooses among the tokens")
def gather_of_tokens(m: Any, h: Tensor, ids: Tensor) -> Any:
    return h + h.gather(1, (ids % 2)[..., None].expand_as(h))


@broken("stream", "aten.index", "chooses among the tokens")
def tokens_looked_up_by_id(m: Any, h: Tensor, ids: Tensor) -> Any:
    return h + h[0][ids[0] % 2][None]


# ---- the stream looks at the step


@broken("stream", "number of tokens")
def divided_by_the_length(m: Any, h: Tensor, ids: Tensor) -> Any:
    return h / h.shape[1]


@broken("stream", "number of tokens")
def place_relative_to_the_length(m: Any, h: Tensor, ids: Tensor) -> Any:
    return h * (torch.arange(h.shape[1]) / h.shape[1])[None, :, None]


@broken("stream", "number of tokens", scale=lambda: nn.Parameter(torch.zeros(CONTEXT)))
def scale_of_the_length(m: Any, h: Tensor, ids: Tensor) -> Any:
    return h * m.scale[h.shape[1]]


@broken("stream", "number of tokens")
def length_as_a_tensor(m: Any, h: Tensor, ids: Tensor) -> Any:
    return h * torch.full((1,), h.shape[1]).float().log()


@broken("stream", "reduces over the token axis", "torch.ones")
def length_counted_by_ones(m: Any, h: Tensor, ids: Tensor) -> Any:
    return h / torch.ones(h.shape[1]).sum()


@broken(
    "stream",
    "scale",
    "depends on the number of tokens",
    scale=lambda: nn.Parameter(torch.zeros(CONTEXT, WIDTH)),
)
def table_from_its_end(m: Any, h: Tensor, ids: Tensor) -> Any:
    return h + m.scale[CONTEXT - h.shape[1] :]


@broken(
    "stream",
    "scale",
    "depends on the number of tokens",
    scale=lambda: nn.Parameter(torch.zeros(CONTEXT, WIDTH)),
)
def row_of_the_last_place(m: Any, h: Tensor, ids: Tensor) -> Any:
    return h + m.scale[h.shape[1] - 1 : h.shape[1]]


@broken("stream", "computes with the number of tokens", "torch.arange")
def numbers_after_the_length(m: Any, h: Tensor, ids: Tensor) -> Any:
    return h * torch.arange(h.shape[1], h.shape[1] + WIDTH).float().log()


@broken("stream", "computes with the number of tokens")
def scaled_by_a_root_of_the_length(m: Any, h: Tensor, ids: Tensor) -> Any:
    return h * h.shape[1] ** -0.5


@broken("stream", "aten.ones", "has a value for each pair of tokens")
def band_counted(m: Any, h: Tensor, ids: Tensor) -> Any:
    seen = torch.ones(h.shape[1], h.shape[1]).tril().triu(-19).sum(1)
    return h / seen[None, :, None]


@broken("stream", "reshapes tokens into another axis")
def tokens_taken_for_channels(m: Any, h: Tensor, ids: Tensor) -> Any:
    return h + h.transpose(1, 2).reshape(h.shape)


@broken("stream", "hides entries by the place of their token")
def triangle_over_channels(m: Any, h: Tensor, ids: Tensor) -> Any:
    return h + h.tril()


@broken("stream", "aten.slice", "takes some of the tokens")
def difference_to_the_first_position(m: Any, h: Tensor, ids: Tensor) -> Any:
    place = torch.arange(h.shape[1])
    return h * (place - place[:1])[None, :, None]


@broken("stream", "draws random numbers")
def noise(m: Any, h: Tensor, ids: Tensor) -> Any:
    return h + torch.rand_like(h)


@broken("stream", "draws random numbers")
def dropout_that_is_always_on(m: Any, h: Tensor, ids: Tensor) -> Any:
    return F.dropout(h, 0.1, training=True)


@broken("stream", "changes 'seen'", seen=lambda: torch.zeros(WIDTH))
def running_state(m: Any, h: Tensor, ids: Tensor) -> Any:
    m.seen.mul_(0.9).add_(h[0, 0])
    return h + m.seen


@broken("stream", "branches on a value", "ids == 0")
def branch_on_content(m: Any, h: Tensor, ids: Tensor) -> Any:
    return h * 2 if (ids == 0).any() else h


@broken("stream", "takes another path for", "h.shape[1] % 2")
def branch_on_the_length(m: Any, h: Tensor, ids: Tensor) -> Any:
    return h * 2 if h.shape[1] % 2 == 0 else h


@broken("stream", "takes another path for", "range(h.shape[1] // 4)")
def loop_over_the_length(m: Any, h: Tensor, ids: Tensor) -> Any:
    for _ in range(h.shape[1] // 4):
        h = h * 1.1
    return h


@broken("stream", "traced for 2 tokens or more", "is wrong for 1")
def branch_for_one_token(m: Any, h: Tensor, ids: Tensor) -> Any:
    return h * 2 if h.shape[1] > 1 else h


@broken("stream", "reduces over the token axis")
def condition_on_content(m: Any, h: Tensor, ids: Tensor) -> Any:
    return torch.where((ids == 0).any(), h * 2, h)


@broken("stream", "combines every token with every other one")
def visible_keys_in_a_window(m: Any, h: Tensor, ids: Tensor) -> Any:
    place = torch.arange(h.shape[1])
    near = (place[None] <= place[:, None]) & (place[:, None] - place[None] < 20)
    return h * near.sum(1)[None, :, None]


# ---- positions


@broken("places", "computes with the number of tokens")
def positions_from_the_end(m: Any, ids: Tensor) -> Any:
    return (ids.shape[1] - 1 - torch.arange(ids.shape[1]))[None]


@broken("places", "aten.flip", "works along the token axis")
def positions_flipped(m: Any, ids: Tensor) -> Any:
    return torch.arange(ids.shape[1]).flip(0)[None]


@broken("places", "aten.cumsum", "works along the token axis")
def positions_that_skip_padding(m: Any, ids: Tensor) -> Any:
    return ((ids != 0).long().cumsum(1) - 1).clamp(min=0)


@broken("places", "aten.sort", "works along the token axis")
def positions_from_a_sort(m: Any, ids: Tensor) -> Any:
    return ids.argsort(1)


# ---- attention that is none of ours


def _causal(length: int) -> Any:
    place = torch.arange(length)
    return place[None] <= place[:, None]


@broken("attend", "every token sees every later one")
def attention_in_both_directions(
    m: Any, q: Tensor, k: Tensor, v: Tensor, h: Tensor, ids: Tensor
) -> Any:
    return F.scaled_dot_product_attention(q, k, v)


@broken("attend", "attention mask", "depends on the content of the tokens")
def mask_of_padding(m: Any, q: Tensor, k: Tensor, v: Tensor, h: Tensor, ids: Tensor) -> Any:
    mask = _causal(q.shape[2]) & (ids != 0)[:, None, None, :]
    return F.scaled_dot_product_attention(q, k, v, mask)


@broken("attend", "attention mask", "depends on the content of the tokens")
def bias_of_content(m: Any, q: Tensor, k: Tensor, v: Tensor, h: Tensor, ids: Tensor) -> Any:
    bias = torch.where(_causal(q.shape[2]), 0.0, float("-inf")) + h.mean(-1)[:, None, None]
    return F.scaled_dot_product_attention(q, k, v, bias)


@broken("attend", "not causal", "sees key")
def mask_of_a_fixed_prefix(m: Any, q: Tensor, k: Tensor, v: Tensor, h: Tensor, ids: Tensor) -> Any:
    mask = _causal(q.shape[2]) | (torch.arange(q.shape[2]) < 4)
    return F.scaled_dot_product_attention(q, k, v, mask)


@broken("attend", "not causal", "sees key")
def mask_of_the_first_half(m: Any, q: Tensor, k: Tensor, v: Tensor, h: Tensor, ids: Tensor) -> Any:
    length = q.shape[2]
    mask = _causal(length) | (torch.arange(length) * 2 < length)
    return F.scaled_dot_product_attention(q, k, v, mask)


@broken("attend", "is not in the mask algebra")
def window_from_the_end(m: Any, q: Tensor, k: Tensor, v: Tensor, h: Tensor, ids: Tensor) -> Any:
    place = torch.arange(q.shape[2])
    mask = _causal(q.shape[2]) & ((place >= place[-1] - 8) | (place == place[:, None]))
    return F.scaled_dot_product_attention(q, k, v, mask)


@broken("attend", "attention bias", "is no ALiBi bias")
def mask_of_learned_entries(m: Any, q: Tensor, k: Tensor, v: Tensor, h: Tensor, ids: Tensor) -> Any:
    length = q.shape[2]
    bias = m.bias[:length, :length].masked_fill(~_causal(length), float("-inf"))
    return F.scaled_dot_product_attention(q, k, v, bias)


BROKEN["mask_of_learned_entries"].layers = lambda: {
    "bias": nn.Parameter(torch.zeros(CONTEXT, CONTEXT))
}


@broken("attend", "k.roll(1, 2)", "computes with the number of tokens")
def keys_of_the_token_before(
    m: Any, q: Tensor, k: Tensor, v: Tensor, h: Tensor, ids: Tensor
) -> Any:
    return F.scaled_dot_product_attention(q, k.roll(1, 2), v, is_causal=True)


@broken("attend", "aten.cumsum", "works along the token axis")
def values_summed_up(m: Any, q: Tensor, k: Tensor, v: Tensor, h: Tensor, ids: Tensor) -> Any:
    return F.scaled_dot_product_attention(q, k, v.cumsum(2), is_causal=True)


@broken("attend", "aten.matmul", "multiplies every token with every other one")
def linear_attention(m: Any, q: Tensor, k: Tensor, v: Tensor, h: Tensor, ids: Tensor) -> Any:
    scores = (q @ k.transpose(-1, -2)).tril()
    return scores @ v


@broken("attend", "scores.softmax(-2)", "normalizes over queries")
def softmax_over_queries(m: Any, q: Tensor, k: Tensor, v: Tensor, h: Tensor, ids: Tensor) -> Any:
    scores = (q @ k.transpose(-1, -2)).masked_fill(~_causal(q.shape[2]), -1e9)
    return scores.softmax(-2) @ v


@broken("attend", "softmax", "is no attention", "scores.softmax(-1)")
def attention_normalized_twice(
    m: Any, q: Tensor, k: Tensor, v: Tensor, h: Tensor, ids: Tensor
) -> Any:
    scores = (q @ k.transpose(-1, -2)).masked_fill(~_causal(q.shape[2]), float("-inf"))
    weights = scores.softmax(-1)
    return (weights / weights.sum(-2, keepdim=True)) @ v


@broken("attend", "reshapes tokens into another axis", ".reshape(1, HEADS, -1, _SIZE)")
def heads_taken_for_tokens(m: Any, q: Tensor, k: Tensor, v: Tensor, h: Tensor, ids: Tensor) -> Any:
    q, k, v = (x.transpose(1, 2).reshape(1, HEADS, -1, _SIZE) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


@broken("attend", "'div' multiplies the scores by something that is no constant", "scores")
def scores_scaled_by_the_length(
    m: Any, q: Tensor, k: Tensor, v: Tensor, h: Tensor, ids: Tensor
) -> Any:
    scores = (q @ k.transpose(-1, -2)) / q.shape[2]
    return scores.masked_fill(~_causal(q.shape[2]), float("-inf")).softmax(-1) @ v


@broken("attend", "takes another path for 2 tokens", "1, tokens")
def attention_scaled_by_the_length(
    m: Any, q: Tensor, k: Tensor, v: Tensor, h: Tensor, ids: Tensor
) -> Any:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=1 / q.shape[2])


@broken("attend", "attention mask", "depends on the content of the tokens")
def mask_of_the_scores(m: Any, q: Tensor, k: Tensor, v: Tensor, h: Tensor, ids: Tensor) -> Any:
    scores = (q @ k.transpose(-1, -2)).masked_fill(~_causal(q.shape[2]), float("-inf"))
    return scores.masked_fill(scores < 0, -1e4).softmax(-1) @ v


@broken("attend", "attention mask", "depends on the content of the tokens")
def best_scores_only(m: Any, q: Tensor, k: Tensor, v: Tensor, h: Tensor, ids: Tensor) -> Any:
    scores = (q @ k.transpose(-1, -2)).masked_fill(~_causal(q.shape[2]), float("-inf"))
    best = scores.amax(-1, keepdim=True)
    return scores.masked_fill(scores < best, float("-inf")).softmax(-1) @ v


@broken("attend", "is not in the mask algebra")
def mask_without_the_own_key(
    m: Any, q: Tensor, k: Tensor, v: Tensor, h: Tensor, ids: Tensor
) -> Any:
    place = torch.arange(q.shape[2])
    return F.scaled_dot_product_attention(q, k, v, place[None] < place[:, None])


@broken("attend", "k[:, :, 1:]", "takes some of the tokens")
def keys_without_the_first(m: Any, q: Tensor, k: Tensor, v: Tensor, h: Tensor, ids: Tensor) -> Any:
    return F.scaled_dot_product_attention(q, k[:, :, 1:], v[:, :, 1:])


@broken("attend", "aten.flip", "works along the token axis")
def keys_reversed(m: Any, q: Tensor, k: Tensor, v: Tensor, h: Tensor, ids: Tensor) -> Any:
    return F.scaled_dot_product_attention(q, k.flip(2), v.flip(2), is_causal=True)


@broken("attend", "scaled_dot_product_attention", "draws random numbers")
def attention_with_dropout(m: Any, q: Tensor, k: Tensor, v: Tensor, h: Tensor, ids: Tensor) -> Any:
    return F.scaled_dot_product_attention(q, k, v, dropout_p=0.1, is_causal=True)


# ---- the result


@broken("result", "[1, tokens, vocabulary]", "[1, 32]")
def pooled_logits(m: Any, logits: Tensor) -> Any:
    return logits.mean(1)


@broken("result", "one row per token")
def logits_of_the_last_token_only(m: Any, logits: Tensor) -> Any:
    return logits[:, -1:]


@broken("result", "takes some of the tokens")
def logits_of_the_last_token_for_all(m: Any, logits: Tensor) -> Any:
    return logits[:, -1:].expand(1, logits.shape[1], VOCAB)


@broken("result", "works along the token axis")
def logits_normalized_over_tokens(m: Any, logits: Tensor) -> Any:
    return logits.log_softmax(1)


# ---- near misses


@sound("stream")
def mean_over_channels(m: Any, h: Tensor, ids: Tensor) -> Any:
    return h + h.mean(-1, keepdim=True) * h.amax(-1, keepdim=True)


@sound("stream")
def norms_over_heads(m: Any, h: Tensor, ids: Tensor) -> Any:
    parts = h.view(1, -1, HEADS, _SIZE)
    return h + (parts / (parts.pow(2).mean(2, keepdim=True) + 1).sqrt()).flatten(2)


@sound("stream")
def running_sum_over_channels(m: Any, h: Tensor, ids: Tensor) -> Any:
    return h + h.softmax(-1)


@sound("stream")
def features_of_the_position(m: Any, h: Tensor, ids: Tensor) -> Any:
    place = torch.arange(h.shape[1]).float()
    features = torch.stack([(place * 0.1).sin(), (place * 0.1).cos()], -1)
    return h + torch.cat([features] * (WIDTH // 2), -1)


@sound("stream")
def divided_by_the_position(m: Any, h: Tensor, ids: Tensor) -> Any:
    return h / torch.arange(1, h.shape[1] + 1)[None, :, None]


@sound("stream")
def multiplied_by_content(m: Any, h: Tensor, ids: Tensor) -> Any:
    return h * (torch.arange(h.shape[1])[None] * ids)[..., None].float().sigmoid()


@sound("stream")
def padding_set_to_zero(m: Any, h: Tensor, ids: Tensor) -> Any:
    return h.masked_fill((ids == 0)[..., None], 0.0)


@sound("stream")
def shift_by_padding(m: Any, h: Tensor, ids: Tensor) -> Any:
    return h + F.pad(h, (0, 0, 1, 0))[:, :-1]


@sound("stream", scale=lambda: nn.Parameter(torch.zeros(CONTEXT, WIDTH)))
def rows_of_a_table(m: Any, h: Tensor, ids: Tensor) -> Any:
    return h + m.scale[: h.shape[1]]


@sound("places")
def positions_from_two(m: Any, ids: Tensor) -> Any:
    return (torch.arange(ids.shape[1]) + 2).clamp(max=40)[None]


@sound("places")
def positions_counted_by_ones(m: Any, ids: Tensor) -> Any:
    return torch.ones_like(ids).cumsum(1) - 1


@sound("attend")
def attention_over_heads(m: Any, q: Tensor, k: Tensor, v: Tensor, h: Tensor, ids: Tensor) -> Any:
    y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    q, k, v = (x.transpose(1, 2) for x in (q, k, y))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


@sound("attend")
def causal_attention_over_heads(
    m: Any, q: Tensor, k: Tensor, v: Tensor, h: Tensor, ids: Tensor
) -> Any:
    y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    q, k, v = (x.transpose(1, 2) for x in (q, k, y))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.7).transpose(1, 2)


@sound("attend")
def attention_over_heads_written_out(
    m: Any, q: Tensor, k: Tensor, v: Tensor, h: Tensor, ids: Tensor
) -> Any:
    y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    q, k, v = (x.transpose(1, 2) for x in (q, k, y))
    return ((q @ k.transpose(-1, -2)).softmax(-1) @ v).transpose(1, 2)


@sound("attend")
def queries_scaled_by_position(
    m: Any, q: Tensor, k: Tensor, v: Tensor, h: Tensor, ids: Tensor
) -> Any:
    scale = torch.log(torch.arange(q.shape[2]) // 4 + 2.0)
    return F.scaled_dot_product_attention(q * scale[:, None], k, v, is_causal=True)


@sound("attend")
def linear_position_bias(m: Any, q: Tensor, k: Tensor, v: Tensor, h: Tensor, ids: Tensor) -> Any:
    place = torch.arange(q.shape[2])
    bias = (place[None] - place[:, None]) * torch.tensor([0.5, 0.25])[:, None, None]
    bias = bias.masked_fill(~_causal(q.shape[2]), float("-inf"))
    return F.scaled_dot_product_attention(q, k, v, bias)


@sound("attend")
def window_of_keys(m: Any, q: Tensor, k: Tensor, v: Tensor, h: Tensor, ids: Tensor) -> Any:
    place = torch.arange(q.shape[2])
    mask = _causal(q.shape[2]) & (place[:, None] - place[None] < 5)
    return F.scaled_dot_product_attention(q, k, v, mask)


@sound("result")
def logits_normalized_over_the_vocabulary(m: Any, logits: Tensor) -> Any:
    return logits - logits.amax(-1, keepdim=True)
