"""select-sampled-rows."""

from __future__ import annotations

from typing import Any

import torch
from small_decoders import Masks, check_decoder, small_decoder

from graphwright.ir import format_graph
from graphwright.passes.insert_kv_cache import InsertKvCache
from graphwright.passes.recognize_attention import RecognizeAttention
from graphwright.passes.select_sampled_rows import SelectSampledRows

aten = torch.ops.aten
PASSES = (RecognizeAttention(), InsertKvCache(), SelectSampledRows())


def attend(q: Any, k: Any, v: Any, m: Masks) -> Any:
    return aten.scaled_dot_product_attention.default(q, k, v, m.causal)


def test_selects_the_residual_stream_right_after_attention() -> None:
    program = small_decoder(attend, after=lambda x: aten.add.Tensor(x, aten.silu.default(x)))
    assert check_decoder(program, *PASSES) == [1, 1, 1]
    text = format_graph(program)
    assert (
        text[text.index("%linear_4") :]
        == """\
%linear_4 : f32[1, T, 32] = aten.linear(%reshape_4, %o_w)
%add_1 : f32[1, T, 32] = aten.add.Tensor(%unsqueeze_1, %linear_4)
%reshape_5 : f32[T, 32] = aten.reshape(%add_1, [-1, 32])
%select_rows_1 : f32[R, 32] = gw.select_rows(%reshape_5, %sample_rows)
%reshape_6 : f32[1, R, 32] = aten.reshape(%select_rows_1, [1, -1, 32])
%silu_1 : f32[1, R, 32] = aten.silu(%reshape_6)
%add_2 : f32[1, R, 32] = aten.add.Tensor(%reshape_6, %silu_1)
%linear_5 : f32[1, R, 32] = aten.linear(%add_2, %head)
%squeeze_1 : f32[R, 32] = aten.squeeze.dim(%linear_5, 0)
return %squeeze_1
"""
    )


def test_sizes_that_counted_tokens_count_rows() -> None:
    def after(x: Any) -> Any:
        length = aten.sym_size.int(x, 1)
        return aten.reshape.default(aten.reshape.default(x, [length, 4, 8]), [1, length, 32])

    program = small_decoder(attend, after=after)
    assert check_decoder(program, *PASSES) == [1, 1, 1]
    value = program.output.meta["val"]
    assert program.dims[str(value.shape[0])] == "R"


def test_a_value_that_is_not_laid_out_in_rows_is_passed_over() -> None:
    """The only value between attention and the logits has its channels first."""

    def after(x: Any) -> Any:
        return aten.permute.default(aten.exp.default(aten.permute.default(x, [0, 2, 1])), [0, 2, 1])

    assert check_decoder(small_decoder(attend, after=after), *PASSES) == [1, 1, 1]
