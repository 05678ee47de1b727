"""recognize-attention: cores in all spellings; which masks it knows is in test_mask_recognition."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from graphs import fire
from small_decoders import HEADS, KV_HEADS, SIZE, Masks, check_decoder, small_decoder

from graphwright.ir import PassError, Program, format_graph
from graphwright.passes.recognize_attention import RecognizeAttention

aten = torch.ops.aten
sdpa = aten.scaled_dot_product_attention.default
LOWEST = torch.finfo(torch.float32).min


def attention_of(program: Program) -> Any:
    (node,) = [n for n in program.graph.nodes if n.target is torch.ops.gw.attention.default]
    return node


def repeat_heads(x: Any) -> Any:
    x = aten.expand.default(aten.unsqueeze.default(x, 2), [-1, -1, HEADS // KV_HEADS, -1, -1])
    return aten.reshape.default(x, [1, HEADS, -1, SIZE])


def scores(q: Any, k: Any) -> Any:
    return aten.matmul.default(q, aten.permute.default(k, [0, 1, 3, 2]))


def weighted(p: Any, v: Any) -> Any:
    return aten.matmul.default(aten.softmax.int(p, -1), v)


def zeros_or_lowest(keep: Any) -> Any:
    zero = aten.new_zeros.default(keep, [], dtype=torch.float32)
    return aten.where.ScalarOther(keep, zero, LOWEST)


def test_sdpa_over_expanded_heads() -> None:
    program = small_decoder(
        lambda q, k, v, m: sdpa(q, repeat_heads(k), repeat_heads(v), m.causal, scale=0.3),
        kv_heads=KV_HEADS,
    )
    assert check_decoder(program, RecognizeAttention()) == [1]
    text = format_graph(program)
    assert (
        text[text.index("%linear_1") :]
        == """\
%linear_1 : f32[1, T, 32] = aten.linear(%unsqueeze_1, %q_w)
%linear_2 : f32[1, T, 16] = aten.linear(%unsqueeze_1, %k_w)
%linear_3 : f32[1, T, 16] = aten.linear(%unsqueeze_1, %v_w)
%reshape_1 : f32[T, 4, 8] = aten.reshape(%linear_1, [-1, 4, 8])
%reshape_2 : f32[T, 2, 8] = aten.reshape(%linear_2, [-1, 2, 8])
%reshape_3 : f32[T, 2, 8] = aten.reshape(%linear_3, [-1, 2, 8])
%attention_1 : f32[T, 4, 8] = gw.attention(%reshape_1, %reshape_2, %reshape_3, %positions, None, \
None, mask="causal", scale=0.3, softcap=0.0)
%reshape_4 : f32[1, T, 32] = aten.reshape(%attention_1, [1, -1, 32])
%linear_4 : f32[1, T, 32] = aten.linear(%reshape_4, %o_w)
%add_1 : f32[1, T, 32] = aten.add.Tensor(%unsqueeze_1, %linear_4)
%linear_5 : f32[1, T, 32] = aten.linear(%add_1, %head)
%squeeze_1 : f32[T, 32] = aten.squeeze.dim(%linear_5, 0)
return %squeeze_1
"""
    )


SDPA = {
    "is_causal": lambda q, k, v, m: sdpa(q, repeat_heads(k), repeat_heads(v), None, 0.0, True),
    "grouped": lambda q, k, v, m: sdpa(q, k, v, m.causal, enable_gqa=True),
    "repeat_interleave": lambda q, k, v, m: sdpa(
        q,
        aten.repeat_interleave.self_int(k, 2, 1),
        aten.repeat_interleave.self_int(v, 2, 1),
        zeros_or_lowest(m.causal),
    ),
}


@pytest.mark.parametrize("name", SDPA)
def test_sdpa_forms(name: str) -> None:
    program = small_decoder(SDPA[name], kv_heads=KV_HEADS)
    assert check_decoder(program, RecognizeAttention()) == [1]
    node = attention_of(program)
    assert node.kwargs == {"scale": SIZE**-0.5, "mask": "causal", "softcap": 0.0}
    assert node.args[1].meta["val"].shape[1:] == (KV_HEADS, SIZE)


def capped(q: Any, k: Any, v: Any, m: Masks) -> Any:
    s = aten.tanh.default(aten.div.Tensor(aten.mul.Tensor(scores(q, k), 0.5), 4.0))
    return weighted(aten.add.Tensor(aten.mul.Tensor(s, 4.0), zeros_or_lowest(m.causal)), v)


def filled(q: Any, k: Any, v: Any, m: Masks) -> Any:
    s = aten.masked_fill.Scalar(scores(q, k), aten.logical_not.default(m.causal), LOWEST)
    return weighted(aten.mul.Tensor(s, 0.5), v)


def chosen(q: Any, k: Any, v: Any, m: Masks) -> Any:
    lowest = aten.new_full.default(m.query, [], LOWEST, dtype=torch.float32)
    s = aten.where.self(m.causal, aten.mul.Tensor(scores(q, k), 0.5), lowest)
    maximum = aten.amax.default(s, [-1], True)
    return weighted(aten.sub.Tensor(s, maximum), v)


def floored(q: Any, k: Any, v: Any, m: Masks) -> Any:
    s = aten.add.Tensor(aten.mul.Tensor(scores(q, k), 0.5), zeros_or_lowest(m.causal))
    lowest = aten.new_full.default(m.query, [], LOWEST, dtype=torch.float32)
    return weighted(aten.maximum.default(s, lowest), v)


def batched(q: Any, k: Any, v: Any, m: Masks) -> Any:
    q, k, v = (aten.reshape.default(x, [HEADS, -1, SIZE]) for x in (q, k, v))
    bias = aten.expand.default(zeros_or_lowest(m.causal), [HEADS, m.length, m.length])
    s = aten.baddbmm.default(bias, q, aten.permute.default(k, [0, 2, 1]), beta=1.0, alpha=0.5)
    p = aten.softmax.int(aten.reshape.default(s, [1, HEADS, m.length, m.length]), -1)
    o = aten.bmm.default(aten.reshape.default(p, [HEADS, m.length, m.length]), v)
    return aten.unsqueeze.default(o, 0)


def scaled_operands(q: Any, k: Any, v: Any, m: Masks) -> Any:
    """As exporters of sdpa write it, so that large heads do not overflow."""
    turned = aten.mul.Scalar(aten.permute.default(k, [0, 1, 3, 2]), 2.0)
    s = aten.matmul.default(aten.mul.Tensor(q, 0.25), turned)
    return weighted(aten.add.Tensor(s, zeros_or_lowest(m.causal)), v)


def guarded(q: Any, k: Any, v: Any, m: Masks) -> Any:
    """Rows that see nothing, of which there are none, would be zeros."""
    s = aten.add.Tensor(aten.mul.Tensor(scores(q, k), 0.5), zeros_or_lowest(m.causal))
    p = aten.softmax.int(s, -1)
    return aten.matmul.default(aten.where.ScalarSelf(aten.isnan.default(p), 0.0, p), v)


def guarded_twice(q: Any, k: Any, v: Any, m: Masks) -> Any:
    s = aten.add.Tensor(aten.mul.Tensor(scores(q, k), 0.5), zeros_or_lowest(m.causal))
    p = aten.softmax.int(s, -1)
    zero = aten.new_full.default(m.query, [], 0.0, dtype=torch.float32)
    return aten.matmul.default(aten.where.self(aten.ne.Tensor(p, p), zero, p), v)


def by_einsum(q: Any, k: Any, v: Any, m: Masks) -> Any:
    """bhqd,bhkd->bhqk and bhqk,bhkd->bhqd: torch computes [H, T, T] and puts axes of one in."""
    q, k, v = (aten.reshape.default(x, [HEADS, -1, SIZE]) for x in (q, k, v))
    s = aten.bmm.default(q, aten.permute.default(k, [0, 2, 1]))
    s = aten.reshape.default(s, [1, HEADS, m.length, 1, m.length])
    s = aten.reshape.default(
        aten.permute.default(s, [0, 1, 2, 4, 3]), [1, HEADS, m.length, m.length]
    )
    s = aten.add.Tensor(aten.mul.Tensor(s, 0.5), zeros_or_lowest(m.causal))
    p = aten.unsqueeze.default(aten.softmax.int(s, -1), 4)
    p = aten.reshape.default(aten.permute.default(p, [0, 1, 2, 4, 3]), [HEADS, m.length, m.length])
    return aten.unsqueeze.default(aten.bmm.default(p, v), 0)


@pytest.mark.parametrize(
    "core",
    [capped, filled, chosen, floored, batched, by_einsum, scaled_operands, guarded, guarded_twice],
)
def test_decomposed_forms(core: Any) -> None:
    program = small_decoder(core)
    assert check_decoder(program, RecognizeAttention()) == [1]
    expected = {"scale": 0.5, "mask": "causal", "softcap": 4.0 if core is capped else 0.0}
    assert attention_of(program).kwargs == expected


def grouped(q: Any, k: Any, v: Any, m: Masks) -> Any:
    """bgrqd,bgkd->bgrqk and back by einsum: heads of a group lie in one axis with the queries."""
    q = aten.reshape.default(q, [KV_HEADS, -1, SIZE])
    k, v = (aten.reshape.default(x, [KV_HEADS, -1, SIZE]) for x in (k, v))
    s = aten.bmm.default(q, aten.permute.default(k, [0, 2, 1]))
    s = aten.reshape.default(s, [1, KV_HEADS, HEADS // KV_HEADS, m.length, m.length])
    s = aten.add.Tensor(aten.mul.Tensor(s, 0.5), zeros_or_lowest(m.causal))
    p = aten.reshape.default(aten.softmax.int(s, -1), [KV_HEADS, -1, m.length])
    return aten.reshape.default(aten.bmm.default(p, v), [1, HEADS, -1, SIZE])


def test_heads_that_share_an_axis_with_the_queries() -> None:
    program = small_decoder(grouped, kv_heads=KV_HEADS)
    assert check_decoder(program, RecognizeAttention()) == [1]
    node = attention_of(program)
    assert node.kwargs == {"scale": 0.5, "mask": "causal", "softcap": 0.0}
    assert node.args[1].meta["val"].shape[1:] == (KV_HEADS, SIZE)


def test_masks_among_heads_that_share_an_axis_are_left() -> None:
    def core(q: Any, k: Any, v: Any, m: Masks) -> Any:
        q = aten.reshape.default(q, [KV_HEADS, -1, SIZE])
        k, v = (aten.reshape.default(x, [KV_HEADS, -1, SIZE]) for x in (k, v))
        s = aten.bmm.default(q, aten.permute.default(k, [0, 2, 1]))
        rows = aten.cat.default([zeros_or_lowest(m.causal)] * (HEADS // KV_HEADS), 0)
        s = aten.reshape.default(aten.add.Tensor(s, rows), [1, KV_HEADS, 2, m.length, m.length])
        p = aten.reshape.default(aten.softmax.int(s, -1), [KV_HEADS, -1, m.length])
        return aten.reshape.default(aten.bmm.default(p, v), [1, HEADS, -1, SIZE])

    assert "several heads share the axis of the queries" in miss_of(core, kv_heads=KV_HEADS)


def test_scores_that_are_turned_are_left() -> None:
    """Weights over the queries in place of the keys, as k · qᵀ has them."""

    def core(q: Any, k: Any, v: Any, m: Masks) -> Any:
        s = aten.permute.default(scores(q, k), [0, 1, 3, 2])
        return weighted(aten.add.Tensor(s, zeros_or_lowest(m.causal)), v)

    assert "moves heads, queries or keys among the scores" in miss_of(core)


@pytest.mark.parametrize("after", [False, True])
def test_heads_that_change_places_are_left(after: bool) -> None:
    """Weights of one head would meet the values of another."""

    def core(q: Any, k: Any, v: Any, m: Masks) -> Any:
        def turned(x: Any) -> Any:
            x = aten.reshape.default(x, [2, HEADS // 2, m.length, m.length])
            x = aten.permute.default(x, [1, 0, 2, 3])
            return aten.reshape.default(x, [1, HEADS, m.length, m.length])

        s = scores(q, k) if after else turned(scores(q, k))
        p = aten.softmax.int(aten.add.Tensor(s, zeros_or_lowest(m.causal)), -1)
        return aten.matmul.default(turned(p) if after else p, v)

    assert "moves heads, queries or keys among the scores" in miss_of(core)


def test_sinks_are_one_more_column_that_is_dropped_again() -> None:
    def core(q: Any, k: Any, v: Any, m: Masks, sinks: Any) -> Any:
        s = aten.add.Tensor(aten.mul.Tensor(scores(q, k), 0.5), zeros_or_lowest(m.causal))
        column = aten.expand.default(
            aten.reshape.default(sinks, [1, -1, 1, 1]), [1, HEADS, m.length, 1]
        )
        p = aten.softmax.int(aten.cat.default([s, column], -1), -1)
        return aten.matmul.default(aten.slice.Tensor(p, 3, 0, -1), v)

    program = small_decoder(core, sinks=torch.randn(HEADS))
    assert check_decoder(program, RecognizeAttention()) == [1]
    assert attention_of(program).args[5].target == "sinks"


def test_sinks_forbid_a_bias_that_moves_whole_rows() -> None:
    def core(q: Any, k: Any, v: Any, m: Masks, sinks: Any) -> Any:
        s = aten.add.Tensor(scores(q, k), zeros_or_lowest(m.causal))
        s = aten.add.Tensor(s, aten.mul.Scalar(m.key, 0.5))
        column = aten.expand.default(
            aten.reshape.default(sinks, [1, -1, 1, 1]), [1, HEADS, m.length, 1]
        )
        p = aten.softmax.int(aten.cat.default([s, column], -1), -1)
        return aten.matmul.default(aten.slice.Tensor(p, 3, 0, -1), v)

    with pytest.raises(PassError, match="which its sinks would notice"):
        fire(small_decoder(core, sinks=torch.randn(HEADS)), RecognizeAttention())


def logsumexp(s: Any, keep: bool) -> Any:
    """As an export spells it, whose rows may be hidden altogether."""
    top = aten.amax.default(s, [-1], True)
    top = aten.masked_fill.Scalar(top, aten.eq.Scalar(aten.abs.default(top), float("inf")), 0)
    total = aten.sum.dim_IntList(aten.exp.default(aten.sub.Tensor(s, top)), [-1], keep)
    return aten.add.Tensor(aten.log.default(total), top if keep else aten.squeeze.dims(top, [-1]))


def rescaled(total: Any = logsumexp, keep: bool = False, shape: Any = (1, -1, 1)) -> Any:
    def core(q: Any, k: Any, v: Any, m: Masks, sinks: Any) -> Any:
        s = aten.add.Tensor(aten.mul.Tensor(scores(q, k), 0.5), zeros_or_lowest(m.causal))
        above = aten.sub.Tensor(total(s, keep), aten.reshape.default(sinks, list(shape)))
        gate = aten.sigmoid.default(above)
        gate = gate if keep else aten.unsqueeze.default(gate, -1)
        return aten.mul.Tensor(weighted(s, v), gate)

    return core


@pytest.mark.parametrize(
    "core", [rescaled(), rescaled(keep=True, shape=(1, -1, 1, 1))], ids=["flat", "keepdim"]
)
def test_sinks_that_scale_what_attention_returns(core: Any) -> None:
    program = small_decoder(core, sinks=torch.randn(HEADS))
    assert check_decoder(program, RecognizeAttention()) == [1]
    assert attention_of(program).args[5].target == "sinks"
    assert not any(n.target is aten.exp.default for n in program.graph.nodes)


def half_of_the_sum(s: Any, keep: bool) -> Any:
    return aten.sub.Tensor(logsumexp(s, keep), aten.amax.default(s, [-1], keep))


def shifted(q: Any, k: Any, v: Any, m: Masks, sinks: Any) -> Any:
    s = aten.add.Scalar(scores(q, k), 5.0)
    s = aten.add.Tensor(s, zeros_or_lowest(m.causal))
    above = aten.sub.Tensor(logsumexp(s, True), aten.reshape.default(sinks, [1, -1, 1, 1]))
    return aten.mul.Tensor(weighted(s, v), aten.sigmoid.default(above))


def test_a_gate_that_is_no_logsumexp_is_not_taken_for_sinks() -> None:
    program = small_decoder(rescaled(half_of_the_sum), sinks=torch.randn(HEADS))
    assert check_decoder(program, RecognizeAttention()) == [1]
    assert attention_of(program).args[5] is None
    assert any(n.target is aten.sigmoid.default for n in program.graph.nodes)


def test_sinks_forbid_a_constant_on_the_scores() -> None:
    counts, misses = fire(small_decoder(shifted, sinks=torch.randn(HEADS)), RecognizeAttention())
    assert counts == [0] and "shifts the scores, but not the sinks" in "".join(misses)


def test_two_nodes_with_one_mask() -> None:
    def core(q: Any, k: Any, v: Any, m: Masks) -> Any:
        return sdpa(sdpa(q, k, v, m.causal), k, v, m.causal)

    assert check_decoder(small_decoder(core), RecognizeAttention()) == [2]


# ---- near misses


def miss_of(core: Any, **options: Any) -> str:
    counts, misses = fire(small_decoder(core, **options), RecognizeAttention())
    assert counts == [0]
    return "\n".join(misses)


def test_attention_between_the_heads_of_a_token_is_left() -> None:
    def core(q: Any, k: Any, v: Any, m: Masks) -> Any:
        q, k, v = (aten.permute.default(x, [0, 2, 1, 3]) for x in (q, k, v))
        return aten.permute.default(sdpa(q, k, v), [0, 2, 1, 3])

    assert "does not attend over tokens: the attended axis of q" in miss_of(core)


def test_dropout_is_left() -> None:
    assert "drops out 0.1" in miss_of(lambda q, k, v, m: sdpa(q, k, v, m.causal, 0.1))


def test_a_softmax_that_is_no_attention_is_left() -> None:
    def core(q: Any, k: Any, v: Any, m: Masks) -> Any:
        s = aten.add.Tensor(aten.exp.default(scores(q, k)), zeros_or_lowest(m.causal))
        return weighted(s, v)

    assert "does not lead to a product of queries and keys" in miss_of(core)


def test_weights_that_are_used_twice_are_left() -> None:
    def core(q: Any, k: Any, v: Any, m: Masks) -> Any:
        p = aten.softmax.int(aten.add.Tensor(scores(q, k), zeros_or_lowest(m.causal)), -1)
        return aten.add.Tensor(aten.matmul.default(p, v), aten.matmul.default(p, q))

    assert "has 2 uses after the softmax" in miss_of(core)


@pytest.mark.parametrize("kind", ["one", "of another", "used"])
def test_other_choices_after_the_softmax_are_left(kind: str) -> None:
    def core(q: Any, k: Any, v: Any, m: Masks) -> Any:
        p = aten.softmax.int(aten.add.Tensor(scores(q, k), zeros_or_lowest(m.causal)), -1)
        test = aten.isnan.default(scores(q, k) if kind == "of another" else p)
        chosen = aten.where.ScalarSelf(test, 1.0 if kind == "one" else 0.0, p)
        found = aten.matmul.default(chosen, v)
        return aten.add.Tensor(found, aten.matmul.default(p, q)) if kind == "used" else found

    why = "stands between" if kind == "of another" else "uses after the softmax, not one"
    assert why in miss_of(core)


def test_a_mask_made_of_tokens_is_refused() -> None:
    def core(q: Any, k: Any, v: Any, m: Masks) -> Any:
        return sdpa(q, k, v, aten.bitwise_and.Tensor(m.causal, aten.ne.Scalar(m.tokens, 3)))

    with pytest.raises(PassError, match=r"'bitwise_and\w*' depends on the content of the tokens"):
        fire(small_decoder(core), RecognizeAttention())


def test_attention_without_a_mask_is_refused() -> None:
    with pytest.raises(PassError, match="every token sees every later one"):
        fire(small_decoder(lambda q, k, v, m: sdpa(q, k, v)), RecognizeAttention())
