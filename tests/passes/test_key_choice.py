"""recognize-attention: keys that each token chooses by scores of index queries and keys.

What is refused of decoders as users write them is in tests/broken/sins_in_choices.py.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from graphs import fire
from small_decoders import HEADS, SIZE, Masks, check_decoder, small_decoder

from graphwright.ir import IndexState, KVState, Mask, PassError, Program, format_graph
from graphwright.passes.insert_kv_cache import InsertKvCache
from graphwright.passes.quantize_kv_cache import QuantizeKvCache
from graphwright.passes.recognize_attention import RecognizeAttention

aten, gw = torch.ops.aten, torch.ops.gw
sdpa = aten.scaled_dot_product_attention.default
K, INDEX_HEADS, INDEX_SIZE, WIDTH = 4, 12, 6, HEADS * SIZE
LOWEST = torch.finfo(torch.float32).min


def index_weights() -> dict[str, Any]:
    """So many heads that no two scores are equal."""
    torch.manual_seed(3)
    return {
        "iq": torch.randn(INDEX_HEADS * INDEX_SIZE, WIDTH) / WIDTH**0.5,
        "ik": torch.randn(INDEX_SIZE, WIDTH) / WIDTH**0.5,
        "iw": torch.randn(INDEX_HEADS, WIDTH) / WIDTH**0.5,
    }


def not_causal(m: Masks) -> Any:
    return aten.logical_not.default(m.causal)


def products(m: Masks, iq: Any, ik: Any) -> Any:
    """[1, T, H, T]"""
    q = aten.reshape.default(aten.linear.default(m.hidden, iq), [1, -1, INDEX_HEADS, INDEX_SIZE])
    k = aten.permute.default(aten.linear.default(m.hidden, ik), [0, 2, 1])
    return aten.matmul.default(q, aten.unsqueeze.default(k, 1))


def scores(m: Masks, iq: Any, ik: Any, iw: Any) -> Any:
    """[1, T, T], those of an indexer, later keys hidden."""
    found = aten.relu.default(aten.mul.Tensor(products(m, iq, ik), 0.25))
    weights = aten.unsqueeze.default(aten.linear.default(m.hidden, iw), 2)
    found = aten.squeeze.dim(aten.matmul.default(weights, found), 2)
    return aten.masked_fill.Scalar(found, not_causal(m), float("-inf"))


def seen(m: Masks, found: Any, k: int = K, causal: Any = None) -> Any:
    marked = aten.unsqueeze.default(gw.mark_largest.default(found, k=k), 1)
    return aten.__and__.Tensor(m.causal if causal is None else causal, marked)


def plain(q: Any, k: Any, v: Any, m: Masks, iq: Any, ik: Any, iw: Any) -> Any:
    return sdpa(q, k, v, seen(m, scores(m, iq, ik, iw)))


def decoder(core: Any) -> Program:
    return small_decoder(core, **index_weights())


def test_what_an_indexer_chooses_becomes_an_op() -> None:
    program = decoder(plain)
    assert check_decoder(program, RecognizeAttention()) == [1]
    text = format_graph(program)
    begin = text.index("%linear_1 ")
    assert (
        text[begin : text.index("%linear_7 ")]
        == """\
%linear_1 : f32[1, T, 32] = aten.linear(%unsqueeze_1, %q_w)
%linear_2 : f32[1, T, 32] = aten.linear(%unsqueeze_1, %k_w)
%linear_3 : f32[1, T, 32] = aten.linear(%unsqueeze_1, %v_w)
%linear_4 : f32[1, T, 72] = aten.linear(%unsqueeze_1, %iq)
%linear_5 : f32[1, T, 6] = aten.linear(%unsqueeze_1, %ik)
%linear_6 : f32[1, T, 12] = aten.linear(%unsqueeze_1, %iw)
%reshape_1 : f32[T, 12, 6] = aten.reshape(%linear_4, [-1, 12, 6])
%reshape_2 : f32[T, 1, 6] = aten.reshape(%linear_5, [-1, 1, 6])
%reshape_3 : f32[T, 12] = aten.reshape(%linear_6, [-1, 12])
%choose_keys_1 : i32[T, 4] = gw.choose_keys(%reshape_1, %reshape_2, %reshape_3, %positions, \
count=4, mask="causal")
%reshape_4 : f32[T, 4, 8] = aten.reshape(%linear_1, [-1, 4, 8])
%reshape_5 : f32[T, 4, 8] = aten.reshape(%linear_2, [-1, 4, 8])
%reshape_6 : f32[T, 4, 8] = aten.reshape(%linear_3, [-1, 4, 8])
%attention_1 : f32[T, 4, 8] = gw.attention(%reshape_4, %reshape_5, %reshape_6, %positions, None, \
None, %choose_keys_1, mask="causal", scale=0.3535533905932738, softcap=0.0)
%reshape_7 : f32[1, T, 32] = aten.reshape(%attention_1, [1, -1, 32])
"""
    )


def by_heads_in_front(q: Any, k: Any, v: Any, m: Masks, iq: Any, ik: Any, iw: Any) -> Any:
    """Two key heads, repeated; a sum of weighted products; factors before and behind; a bias."""
    a = aten.reshape.default(aten.linear.default(m.hidden, iq), [1, -1, INDEX_HEADS, INDEX_SIZE])
    b = aten.reshape.default(aten.linear.default(m.hidden, ik), [1, -1, 2, INDEX_SIZE // 2])
    b = aten.repeat.default(b, [1, 1, 1, 2])
    a, b = (aten.permute.default(x, [0, 2, 1, 3]) for x in (a, b))
    b = aten.expand.default(aten.unsqueeze.default(b, 2), [-1, -1, INDEX_HEADS // 2, -1, -1])
    b = aten.reshape.default(b, [1, INDEX_HEADS, -1, INDEX_SIZE])
    found = aten.matmul.default(a, aten.permute.default(b, [0, 1, 3, 2]))
    found = aten.clamp_min.default(aten.div.Tensor(found, 3.0), 0)
    weights = aten.permute.default(aten.linear.default(m.hidden, iw), [0, 2, 1])
    found = aten.mul.Tensor(found, aten.unsqueeze.default(weights, -1))
    found = aten.mul.Tensor(aten.sum.dim_IntList(found, [1]), 2.0)
    bias = aten.where.Scalar(m.causal, 0.0, LOWEST)
    marked = gw.mark_largest.default(aten.add.Tensor(found, bias), k=K)
    left = aten.unsqueeze.default(aten.bitwise_not.default(marked), 1)
    return sdpa(q, k, v, aten.masked_fill.Scalar(bias, left, LOWEST))


def by_numbers(q: Any, k: Any, v: Any, m: Masks, iq: Any, ik: Any, iw: Any) -> Any:
    """Scores written out, and what is hidden a sum of 0 and minus infinity."""
    marked = gw.mark_largest.default(scores(m, iq, ik, iw), k=K)
    chosen = aten.where.Scalar(marked, 0.0, float("-inf"))
    products = aten.matmul.default(q, aten.permute.default(k, [0, 1, 3, 2]))
    bias = aten.add.Tensor(chosen, aten.where.Scalar(m.causal, 0.0, float("-inf")))
    return aten.matmul.default(aten.softmax.int(aten.add.Tensor(products, bias), -1), v)


def hidden_by_or(q: Any, k: Any, v: Any, m: Masks, iq: Any, ik: Any, iw: Any) -> Any:
    marked = gw.mark_largest.default(scores(m, iq, ik, iw), k=K)
    hidden = aten.logical_or.default(aten.bitwise_not.default(marked), not_causal(m))
    products = aten.matmul.default(q, aten.permute.default(k, [0, 1, 3, 2]))
    filled = aten.masked_fill.Scalar(products, hidden, float("-inf"))
    return aten.matmul.default(aten.softmax.int(filled, -1), v)


def within_a_window(q: Any, k: Any, v: Any, m: Masks, iq: Any, ik: Any, iw: Any) -> Any:
    near = m.window(9)
    found = aten.where.ScalarOther(near, scores(m, iq, ik, iw), float("-inf"))
    return sdpa(q, k, v, seen(m, found, causal=near))


SPELLINGS = [by_heads_in_front, by_numbers, hidden_by_or, within_a_window]


@pytest.mark.parametrize("core", SPELLINGS)
def test_spellings(core: Any) -> None:
    program = decoder(core)
    assert check_decoder(program, RecognizeAttention(), InsertKvCache()) == [1, 2]
    index, cache = program.states
    assert isinstance(index, IndexState) and isinstance(cache, KVState) and cache.chosen == K
    assert index.heads == (2 if core is by_heads_in_front else 1)
    assert index.mask == cache.mask == Mask(window=9 if core is within_a_window else None)


def test_attention_that_shares_a_choice_shares_the_op() -> None:
    def core(q: Any, k: Any, v: Any, m: Masks, iq: Any, ik: Any, iw: Any) -> Any:
        mask = seen(m, scores(m, iq, ik, iw))
        return sdpa(sdpa(q, k, v, mask), k, v, mask)

    program = decoder(core)
    assert check_decoder(program, RecognizeAttention(), InsertKvCache()) == [2, 3]
    assert [type(state) for state in program.states] == [IndexState, KVState]
    assert format_graph(program).count("gw.cached_choose_keys(") == 1


def test_what_is_chosen_and_what_is_not_keep_caches_apart() -> None:
    def core(q: Any, k: Any, v: Any, m: Masks, iq: Any, ik: Any, iw: Any) -> Any:
        return sdpa(plain(q, k, v, m, iq, ik, iw), k, v, m.causal)

    program = decoder(core)
    assert check_decoder(program, RecognizeAttention(), InsertKvCache()) == [2, 3]
    chosen = [state.chosen for state in program.states if isinstance(state, KVState)]
    assert chosen == [K, 0]


@pytest.mark.parametrize(("dtype", "index"), [("bf16", "bf16"), ("f16", "f16"), ("int8", "f16")])
def test_index_keys_are_kept_in_16_bits_at_least(dtype: str, index: str) -> None:
    program = decoder(plain)
    passes = (RecognizeAttention(), InsertKvCache(), QuantizeKvCache(dtype))
    assert check_decoder(program, *passes) == [1, 2, 2]  # which chooses as without rounding
    text = format_graph(program)
    assert f"%index0 : {index}[N, 16, 1, 6] = input" in text
    scales = "%kv1_k_scale, %kv1_v_scale" if dtype == "int8" else "None, None"
    assert f"{scales}, %cached_choose_keys_1, mask=" in text


def refusal(core: Any) -> str:
    with pytest.raises(PassError) as caught:
        fire(decoder(core), RecognizeAttention())
    return str(caught.value)


def test_other_ops_on_the_scores_are_refused() -> None:
    def averaged(q: Any, k: Any, v: Any, m: Masks, iq: Any, ik: Any, iw: Any) -> Any:
        found = aten.mean.dim(aten.relu.default(products(m, iq, ik)), [2])
        return sdpa(q, k, v, seen(m, found))

    def bent(q: Any, k: Any, v: Any, m: Masks, iq: Any, ik: Any, iw: Any) -> Any:
        return sdpa(q, k, v, seen(m, aten.tanh.default(scores(m, iq, ik, iw))))

    for core, op in ((averaged, "aten.mean.dim"), (bent, "aten.tanh.default")):
        assert f"({op}) is none of the ops that are known there" in refusal(core)


def test_a_mask_of_nothing_but_a_choice_is_refused() -> None:
    """The first tokens choose more keys than they see: later ones would fill up."""

    def core(q: Any, k: Any, v: Any, m: Masks, iq: Any, ik: Any, iw: Any) -> Any:
        marked = gw.mark_largest.default(scores(m, iq, ik, iw), k=K)
        return sdpa(q, k, v, aten.unsqueeze.default(marked, 1))

    assert "every token sees every later one" in refusal(core)


def test_heads_that_choose_for_themselves_are_refused() -> None:
    def core(q: Any, k: Any, v: Any, m: Masks, iq: Any, ik: Any, iw: Any) -> Any:
        found = aten.matmul.default(q, aten.permute.default(k, [0, 1, 3, 2]))
        found = aten.masked_fill.Scalar(found, not_causal(m), float("-inf"))
        marked = gw.mark_largest.default(found, k=K)
        return sdpa(q, k, v, aten.__and__.Tensor(m.causal, marked))

    assert "is not one value for each query and key" in refusal(core)


def test_marks_that_are_turned_are_refused() -> None:
    """The key would choose its queries."""

    def core(q: Any, k: Any, v: Any, m: Masks, iq: Any, ik: Any, iw: Any) -> Any:
        marked = gw.mark_largest.default(scores(m, iq, ik, iw), k=K)
        for turn in (aten.permute.default(marked, [0, 2, 1]), aten.transpose.int(marked, 1, 2)):
            mask = aten.__and__.Tensor(m.causal, aten.unsqueeze.default(turn, 1))
            q = sdpa(q, k, v, mask)
        return q

    assert "depends on the content of the tokens" in refusal(core)


def test_masks_and_keys_of_another_arrangement_are_refused() -> None:
    def hidden_turned(q: Any, k: Any, v: Any, m: Masks, iq: Any, ik: Any, iw: Any) -> Any:
        """Earlier keys are hidden, from scores of keys and queries."""
        found: Any = aten.relu.default(products(m, iq, ik))
        weights = aten.unsqueeze.default(aten.linear.default(m.hidden, iw), -1)
        found = aten.sum.dim_IntList(aten.mul.Tensor(found, weights), [2])
        found = aten.permute.default(found, [0, 2, 1])
        found = aten.masked_fill.Scalar(found, not_causal(m), float("-inf"))
        return sdpa(q, k, v, seen(m, aten.permute.default(found, [0, 2, 1])))

    def repeated(q: Any, k: Any, v: Any, m: Masks, iq: Any, ik: Any, iw: Any) -> Any:
        """One query for all tokens, by broadcasting."""
        first = aten.slice.Tensor(scores(m, iq, ik, iw), 1, 0, 1)
        zero = aten.where.Scalar(m.causal, 0.0, float("-inf"))
        return sdpa(q, k, v, seen(m, aten.add.Tensor(first, zero)))

    def by_keys_of_the_query(q: Any, k: Any, v: Any, m: Masks, iq: Any, ik: Any, iw: Any) -> Any:
        """Keys that differ from query to query: their sum with something of the query."""
        a = aten.reshape.default(
            aten.linear.default(m.hidden, iq), [1, -1, INDEX_HEADS, INDEX_SIZE]
        )
        b = aten.permute.default(aten.linear.default(m.hidden, ik), [0, 2, 1])
        own = aten.unsqueeze.default(aten.linear.default(m.hidden, ik), -1)
        b = aten.add.Tensor(aten.unsqueeze.default(b, 1), own)
        found = aten.relu.default(aten.matmul.default(a, b))
        weights = aten.unsqueeze.default(aten.linear.default(m.hidden, iw), 2)
        found = aten.squeeze.dim(aten.matmul.default(weights, found), 2)
        return sdpa(q, k, v, seen(m, aten.masked_fill.Scalar(found, not_causal(m), float("-inf"))))

    assert "hides keys where they are not the last axis" in refusal(hidden_turned)
    assert "repeats the scores" in refusal(repeated)
    assert "does not multiply by keys of other tokens" in refusal(by_keys_of_the_query)


def test_scores_of_fewer_axes_than_their_mask() -> None:
    def core(q: Any, k: Any, v: Any, m: Masks, iq: Any, ik: Any, iw: Any) -> Any:
        found = aten.relu.default(products(m, iq, ik))
        weights = aten.unsqueeze.default(aten.linear.default(m.hidden, iw), 2)
        found = aten.squeeze.dim(aten.matmul.default(weights, found), 2)
        causal = aten.unsqueeze.default(aten.unsqueeze.default(m.causal, 0), 0)
        found = aten.where.ScalarOther(causal, found, float("-inf"))
        marked = gw.mark_largest.default(found, k=K)
        return sdpa(q, k, v, aten.__and__.Tensor(causal, marked))

    assert check_decoder(decoder(core), RecognizeAttention(), InsertKvCache()) == [1, 2]


def test_weights_of_the_key_and_queries_of_other_tokens_are_refused() -> None:
    def of(turn: Any) -> str:
        def core(q: Any, k: Any, v: Any, m: Masks, iq: Any, ik: Any, iw: Any) -> Any:
            found = turn(m, aten.relu.default(products(m, iq, ik)), iw)
            hidden = aten.masked_fill.Scalar(found, not_causal(m), float("-inf"))
            return sdpa(q, k, v, seen(m, hidden))

        return refusal(core)

    def by_key(m: Masks, found: Any, iw: Any) -> Any:
        weights = aten.permute.default(aten.linear.default(m.hidden, iw), [0, 2, 1])
        found = aten.mul.Tensor(found, aten.unsqueeze.default(weights, 1))
        return aten.sum.dim_IntList(found, [2])

    def by_no_weights(m: Masks, found: Any, iw: Any) -> Any:
        return aten.sum.dim_IntList(found, [2])

    def turned(m: Masks, found: Any, iw: Any) -> Any:
        """Scores of the key's queries with the query's keys."""
        weights = aten.unsqueeze.default(aten.linear.default(m.hidden, iw), -1)
        found = aten.sum.dim_IntList(aten.mul.Tensor(found, weights), [2])
        return aten.permute.default(found, [0, 2, 1])

    assert "does not weigh heads by the token" in of(by_key)
    assert "does not weigh heads by the token" in of(by_no_weights)
    assert "weighs heads by something else than the token" in of(turned)
