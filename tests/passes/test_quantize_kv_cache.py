"""quantize-kv-cache: caches of fewer bits, with scales where they are integers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from graphs import fire
from small_decoders import KV_HEADS, SIZE, Masks, check_decoder, small_decoder

from graphwright.ir import KVState, PassError, format_graph
from graphwright.passes.insert_kv_cache import InsertKvCache
from graphwright.passes.quantize_kv_cache import QuantizeKvCache
from graphwright.passes.recognize_attention import RecognizeAttention

aten = torch.ops.aten
PASSES = (RecognizeAttention(), InsertKvCache())


def attend(q: Any, k: Any, v: Any, m: Masks) -> Any:
    return aten.scaled_dot_product_attention.default(q, k, v, m.window(5), enable_gqa=True)


def twice(q: Any, k: Any, v: Any, m: Masks) -> Any:
    return attend(attend(q, k, v, m), k, v, m)


def test_int8_keeps_a_scale_for_each_token_and_head() -> None:
    program = small_decoder(attend, kv_heads=KV_HEADS)
    assert check_decoder(program, *PASSES, QuantizeKvCache("int8")) == [1, 1, 1]
    (state,) = program.states
    assert isinstance(state, KVState)
    assert state.bytes_per_token() == 2 * KV_HEADS * (SIZE + 4)
    text = format_graph(program)
    begin, end = text.index("%kv0_k "), text.index("%table")
    assert (
        text[begin:end]
        == """\
%kv0_k : i8[N, 16, 2, 8] = input
%kv0_v : i8[N, 16, 2, 8] = input
%kv0_k_scale : f32[N, 16, 2] = input
%kv0_v_scale : f32[N, 16, 2] = input
"""
    )
    assert "None, None, %kv0_k_scale, %kv0_v_scale, mask=" in text


@pytest.mark.parametrize(("dtype", "name"), [("f16", "f16"), ("bf16", "bf16")])
def test_floats_are_rounded(dtype: str, name: str) -> None:
    program = small_decoder(attend, kv_heads=KV_HEADS)
    assert check_decoder(program, *PASSES, QuantizeKvCache(dtype)) == [1, 1, 1]
    assert f"%kv0_k : {name}[N, 16, 2, 8]" in format_graph(program)
    assert program.states[0].bytes_per_token() == 2 * KV_HEADS * SIZE * 2


def test_nodes_that_share_a_cache_share_its_scales() -> None:
    program = small_decoder(twice)
    assert check_decoder(program, *PASSES, QuantizeKvCache("int8")) == [2, 2, 1]
    nodes = [n for n in program.graph.nodes if n.target is torch.ops.gw.cached_attention.default]
    assert len(nodes) == 2 and nodes[0].args[10:] == nodes[1].args[10:] != ()


def test_what_stays() -> None:
    for dtype in ("auto", "f32"):
        program = small_decoder(attend)
        assert fire(program, *PASSES, QuantizeKvCache(dtype))[0] == [1, 1, 0]
    program = small_decoder(attend)
    counts, misses = fire(program, *PASSES, QuantizeKvCache("f16"), QuantizeKvCache("int8"))
    assert counts == [1, 1, 1, 0] and misses == ["the cache 'kv0' is torch.float16 already."]


def test_an_unknown_type_is_refused() -> None:
    with pytest.raises(PassError, match="'fp4' is no type of the KV cache; there are auto, f32"):
        QuantizeKvCache("fp4")
