"""insert-kv-cache, and the proof that nothing but attention mixes tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from graphs import fire
from small_decoders import HEADS, KV_HEADS, SIZE, Masks, check_decoder, small_decoder

from graphwright.ir import KVState, Level, PassError, format_graph
from graphwright.passes.insert_kv_cache import InsertKvCache
from graphwright.passes.recognize_attention import RecognizeAttention
from graphwright.passes.select_sampled_rows import SelectSampledRows

aten = torch.ops.aten
PASSES = (RecognizeAttention(), InsertKvCache())


def attend(q: Any, k: Any, v: Any, m: Masks) -> Any:
    return aten.scaled_dot_product_attention.default(q, k, v, m.window(5), enable_gqa=True)


def test_attention_gets_a_cache() -> None:
    program = small_decoder(attend, kv_heads=KV_HEADS)
    assert check_decoder(program, *PASSES) == [1, 1]
    assert program.level is Level.CACHED
    (state,) = program.states
    assert isinstance(state, KVState)
    assert (state.name, state.heads, state.head_dim, str(state.mask)) == (
        "kv0", KV_HEADS, SIZE, "causal & window(5)",
    )  # fmt: skip
    text = format_graph(program)
    assert (
        text[: text.index("%table")]
        == """\
%tokens : i64[T] = input
%positions : i64[T] = input
%query_start : i32[B1] = input
%block_table : i32[B, M] = input
%kv0_k : f32[N, 16, 2, 8] = input
%kv0_v : f32[N, 16, 2, 8] = input
"""
    )
    begin, end = text.index("%cached_attention_1"), text.index("%reshape_4")
    assert (
        text[begin:end]
        == """\
%cached_attention_1 : f32[T, 4, 8] = gw.cached_attention(%reshape_1, %reshape_2, %reshape_3, \
%kv0_k, %kv0_v, %positions, %query_start, %block_table, None, None, \
mask="causal & window(5)", scale=0.3535533905932738, softcap=0.0)
"""
    )


def test_nodes_over_the_same_keys_and_values_share_a_cache() -> None:
    def core(q: Any, k: Any, v: Any, m: Masks) -> Any:
        return attend(attend(q, k, v, m), k, v, m)

    program = small_decoder(core)
    assert check_decoder(program, *PASSES, SelectSampledRows()) == [2, 2, 1]
    assert [state.name for state in program.states] == ["kv0"]
    second = [n for n in program.graph.nodes if "cached_attention" in n.name][1]
    assert second.args[1] is None and second.args[2] is None


def test_other_keys_or_another_mask_mean_another_cache() -> None:
    def core(q: Any, k: Any, v: Any, m: Masks) -> Any:
        return attend(attend(attend(q, k, v, m), q, v, m), k, v, replace_mask(m))

    def replace_mask(m: Masks) -> Any:
        class Wide:
            def window(self, _: int) -> Any:
                return m.causal

        return Wide()

    program = small_decoder(core)
    assert check_decoder(program, *PASSES) == [3, 3]
    assert len(program.states) == 3


# ---- what must not remain


def refusal(after: Any, **options: Any) -> str:
    with pytest.raises(PassError) as error:
        fire(small_decoder(attend, after=after, **options), *PASSES)
    return str(error.value)


def per_head(x: Any) -> Any:
    return aten.reshape.default(x, [1, -1, HEADS, SIZE])


MIXERS = {
    "mean.dim) reduces over the token axis": lambda x: aten.add.Tensor(
        x, aten.mean.dim(x, [1], True)
    ),
    "cumsum.default) works along the token axis": lambda x: aten.cumsum.default(x, 1),
    "softmax.int) works along the token axis": lambda x: aten.softmax.int(x, 1),
    "cat.default) joins values along the token axis": lambda x: aten.slice.Tensor(
        aten.cat.default([aten.mul.Tensor(x, 0), x], 1), 1, 0, aten.sym_size.int(x, 1)
    ),
    "flip.default) works along the token axis": lambda x: aten.flip.default(x, [1]),
    "reshape.default) reshapes tokens into another axis": lambda x: aten.reshape.default(
        aten.permute.default(x, [0, 2, 1]), [1, -1, HEADS * SIZE]
    ),
    "matmul.default) contracts the token axis": lambda x: aten.matmul.default(
        x, aten.matmul.default(aten.permute.default(x, [0, 2, 1]), x)
    ),
    "mul.Tensor) combines every token with every other one": lambda x: aten.sum.dim_IntList(
        aten.mul.Tensor(aten.unsqueeze.default(x, 1), aten.unsqueeze.default(x, 2)), [1]
    ),
    "select.int) takes one of the tokens": lambda x: aten.add.Tensor(
        x, aten.unsqueeze.default(aten.select.int(x, 1, 0), 1)
    ),
    "mul.Tensor) computes with the number of tokens": lambda x: aten.mul.Tensor(
        x, aten.sym_size.int(x, 1)
    ),
    "tril.default) hides entries by the place of their token in the step": aten.tril.default,
}


@pytest.mark.parametrize("reason", MIXERS)
def test_ops_that_mix_tokens_are_refused(reason: str) -> None:
    text = refusal(MIXERS[reason])
    assert f"aten.{reason}" in text and "in pass 'insert-kv-cache'" in text


def test_attention_that_was_not_recognised_is_refused_with_the_reason() -> None:
    def scores(x: Any) -> Any:
        s = aten.matmul.default(x, aten.permute.default(x, [0, 2, 1]))
        return aten.matmul.default(aten.softmax.int(aten.exp.default(s), -1), x)

    text = refusal(scores)
    assert "(aten.exp.default) does not lead to a product of queries and keys" in text
    assert "Only attention over earlier tokens has a cache" in text
    heads = refusal(
        lambda x: aten.reshape.default(
            aten.scaled_dot_product_attention.default(per_head(x), per_head(x), per_head(x)),
            [1, -1, HEADS * SIZE],
        )
    )
    assert "does not attend over tokens: the attended axis of q" in heads


def test_numbering_the_tokens_of_a_step_is_refused() -> None:
    def after(x: Any) -> Any:
        numbers = aten.arange.default(aten.sym_size.int(x, 1))
        return aten.add.Tensor(x, aten.unsqueeze.default(numbers, 1))

    assert "numbers the tokens of this step" in refusal(after)


KEEPERS = {
    "softmax over channels": lambda x: aten.softmax.int(x, -1),
    "softmax over heads": lambda x: aten.reshape.default(
        aten.softmax.int(per_head(x), 2), [1, -1, HEADS * SIZE]
    ),
    "transposed": lambda x: aten.permute.default(
        aten.exp.default(aten.permute.default(x, [2, 0, 1])), [1, 2, 0]
    ),
    "flattened": lambda x: aten.reshape.default(
        aten.layer_norm.default(aten.reshape.default(x, [-1, HEADS * SIZE]), [HEADS * SIZE]),
        [1, -1, HEADS * SIZE],
    ),
    "constants for each token": lambda x: aten.add.Tensor(
        x, aten.new_ones.default(x, [1, aten.sym_size.int(x, 1), 1])
    ),
    "split and joined": lambda x: aten.cat.default(
        [aten.slice.Tensor(x, 2, SIZE, 4 * SIZE), aten.slice.Tensor(x, 2, 0, SIZE)], -1
    ),
    "products within a token": lambda x: aten.reshape.default(
        aten.matmul.default(
            aten.reshape.default(x, [-1, HEADS, SIZE]),
            aten.matmul.default(
                aten.permute.default(aten.reshape.default(x, [-1, HEADS, SIZE]), [0, 2, 1]),
                aten.reshape.default(x, [-1, HEADS, SIZE]),
            ),
        ),
        [1, -1, HEADS * SIZE],
    ),
}


@pytest.mark.parametrize("name", KEEPERS)
def test_ops_within_a_token_are_kept(name: str) -> None:
    program = small_decoder(attend, after=lambda x: aten.tanh.default(KEEPERS[name](x)))
    assert check_decoder(program, *PASSES, SelectSampledRows()) == [1, 1, 1]
