"""recognize-causal-conv."""

from __future__ import annotations

import functools
import random
from typing import Any

import pytest
import torch
from graphs import build_program, check_pass, fire, random_inputs, rows
from small_decoders import Masks, check_decoder, small_decoder
from torch._dispatch.python import enable_python_dispatcher

from graphwright.ir import ConvState, KVState, Level, PassError, Program, format_graph
from graphwright.ir.interpreter import run_program
from graphwright.ir.tolerance import check_close
from graphwright.passes.canonicalize_ops import CanonicalizeOps
from graphwright.passes.insert_kv_cache import InsertKvCache
from graphwright.passes.recognize_attention import RecognizeAttention
from graphwright.passes.recognize_causal_conv import RecognizeCausalConv
from graphwright.passes.select_sampled_rows import SelectSampledRows

aten = torch.ops.aten
WIDTH = 6


def first(x: Any) -> Any:
    return aten.permute.default(x, [0, 2, 1])  # [1, T, C] and [1, C, T] into each other


def cut(x: Any, tokens: Any, dim: int = 2) -> Any:
    return aten.slice.Tensor(x, dim, 0, tokens)


def conv(
    x: Any, w: Any, bias: Any = None, *, padding: int = 2, stride: int = 1, dilation: int = 1,
    groups: int = WIDTH,
) -> Any:  # fmt: skip
    return aten.conv1d.default(x, w, bias, [stride], [padding], [dilation], groups)


def program_of(function: Any, **weights: torch.Tensor) -> Program:
    """function(x [1, T, WIDTH], the number of tokens, weights…)."""
    names = ", ".join(weights)
    flat = eval(
        f"lambda tokens, x, {names}: function(x, size(tokens, 0), {names})",
        {"function": function, "size": aten.sym_size.int},
    )
    tokens = rows(dtype=torch.int64, batch=False)
    with enable_python_dispatcher():  # padding a symbolic size has a shape rule in Python only
        program = build_program(flat, Level.NORMALIZED, tokens=tokens, x=rows(WIDTH), **weights)
    program.clean()
    return program


def kernel(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def depthwise(taps: int = 3) -> torch.Tensor:
    return kernel(WIDTH, 1, taps)


def body(program: Program) -> str:
    """The printed graph behind the inputs."""
    lines = format_graph(program).splitlines(keepends=True)
    return "".join(line for line in lines if not line.endswith(("input\n", "weight\n")))


def test_a_padded_convolution_that_is_cut() -> None:
    program = program_of(
        lambda x, t, w, b: first(cut(conv(first(x), w, b), t)), w=depthwise(), b=kernel(WIDTH)
    )
    check_pass(program, RecognizeCausalConv(), 1)
    assert (
        format_graph(program)
        == """\
%tokens : i64[T] = input
%x : f32[1, T, 6] = input
%conv1d_default_kernel : f32[6, 3] = weight
%b : f32[6] = weight
%reshape_1 : f32[T, 6] = aten.reshape(%x, [-1, 6])
%conv_along_tokens_1 : f32[T, 6] = gw.conv_along_tokens(%reshape_1, %conv1d_default_kernel, %b)
%reshape_2 : f32[1, T, 6] = aten.reshape(%conv_along_tokens_1, [1, -1, 6])
return %reshape_2
"""
    )


def test_a_dense_convolution_is_a_product_with_the_rows_that_a_token_sees() -> None:
    program = program_of(
        lambda x, t, w: first(cut(conv(first(x), w, groups=1), t)), w=kernel(4, WIDTH, 3)
    )
    check_pass(program, RecognizeCausalConv(), 1)
    assert (
        body(program)
        == """\
%reshape_1 : f32[T, 6] = aten.reshape(%x, [-1, 6])
%conv_along_tokens_1 : f32[T, 18] = gw.conv_along_tokens(%reshape_1, %conv1d_default_taps, None)
%linear_1 : f32[T, 4] = aten.linear(%conv_along_tokens_1, %conv1d_default_matrix)
%reshape_2 : f32[1, T, 4] = aten.reshape(%linear_1, [1, -1, 4])
return %reshape_2
"""
    )


def unfolded(x: Any, tokens: Any, w: Any) -> Any:
    """Windows of three tokens, the last one first, weighted and summed: [1, T, C]."""
    padded = aten.constant_pad_nd.default(first(x), [2, 0])
    windows = aten.unfold.default(padded, -1, 3, 1)
    windows = aten.permute.default(aten.flip.default(windows, [-1]), [0, 2, 1, 3])
    return aten.sum.dim_IntList(aten.mul.Tensor(windows, w), [-1])


def test_windows_that_are_unfolded_are_shifts() -> None:
    program = program_of(unfolded, w=kernel(WIDTH, 3))
    before = program.copy()
    with enable_python_dispatcher():
        fire(program, CanonicalizeOps())
    _, misses = fire(program, RecognizeCausalConv())
    assert not misses
    targets = [node.target for node in program.graph.nodes]
    assert targets.count(torch.ops.gw.conv_along_tokens.default) == 2  # the third is x itself
    assert aten.unfold.default not in targets and aten.constant_pad_nd.default not in targets
    for tokens in (1, 6):
        inputs = random_inputs(before, tokens)
        check_close(run_program(program, inputs), run_program(before, inputs), "reassociating")


def test_each_group_of_channels_has_a_matrix_of_its_own() -> None:
    program = program_of(
        lambda x, t, w, b: first(cut(conv(first(x), w, b, groups=2), t)),
        w=kernel(4, 3, 3),
        b=kernel(4),
    )
    check_pass(program, RecognizeCausalConv(), 1)
    assert (
        body(program)
        == """\
%reshape_1 : f32[T, 6] = aten.reshape(%x, [-1, 6])
%conv_along_tokens_1 : f32[T, 18] = gw.conv_along_tokens(%reshape_1, %conv1d_default_taps, None)
%slice_1 : f32[T, 9] = aten.slice.Tensor(%conv_along_tokens_1, 1, 0, 9)
%linear_1 : f32[T, 2] = aten.linear(%slice_1, %conv1d_default_matrix, %conv1d_default_bias)
%slice_2 : f32[T, 9] = aten.slice.Tensor(%conv_along_tokens_1, 1, 9, 18)
%linear_2 : f32[T, 2] = aten.linear(%slice_2, %conv1d_default_matrix_1, %conv1d_default_bias_1)
%cat_1 : f32[T, 4] = aten.cat([%linear_1, %linear_2], 1)
%reshape_2 : f32[1, T, 4] = aten.reshape(%cat_1, [1, -1, 4])
return %reshape_2
"""
    )


def test_a_token_shift() -> None:
    program = program_of(
        lambda x, t, w: aten.mul.Tensor(aten.constant_pad_nd.default(x, [0, 0, 1, -1]), w),
        w=kernel(WIDTH),
    )
    check_pass(program, RecognizeCausalConv(), 1, "exact")
    assert (
        body(program)
        == """\
%reshape_1 : f32[T, 6] = aten.reshape(%x, [-1, 6])
%conv_along_tokens_1 : f32[T, 6] = gw.conv_along_tokens(%reshape_1, %shift, None)
%reshape_2 : f32[1, T, 6] = aten.reshape(%conv_along_tokens_1, [1, -1, 6])
%mul_1 : f32[1, T, 6] = aten.mul.Tensor(%reshape_2, %w)
return %mul_1
"""
    )


def padded(x: Any, before: int, behind: int = 0) -> Any:
    return aten.constant_pad_nd.default(x, [before, behind], 0.0)


def activated(x: Any, w: Any, t: Any) -> Any:
    y = conv(first(x), w)
    return cut(first(aten.mul.Tensor(y, aten.sigmoid.default(y))), t, dim=1)


def joined(x: Any, t: Any) -> Any:
    zeros = aten.new_zeros.default(x, [1, 1, WIDTH])
    return aten.cat.default([zeros, aten.slice.Tensor(x, 1, 0, -1)], 1)


SPELLINGS = {
    "padded in front": (lambda x, t, w: conv(padded(first(x), 2), w, padding=0), 3),
    "padded before the tokens move": (
        lambda x, t, w: conv(first(aten.constant_pad_nd.default(x, [0, 0, 2, 0])), w, padding=0),
        3,
    ),
    "cut from the end": (
        lambda x, t, w: aten.slice.Tensor(conv(first(x), w), 2, 0, -2),
        3,
    ),
    "cut twice": (
        lambda x, t, w: cut(aten.slice.Tensor(conv(first(x), w, padding=4), 2, 2), t),
        3,
    ),
    "activated before the cut": (lambda x, t, w: activated(x, w, t), 3),
    "dilated": (
        lambda x, t, w: cut(conv(first(x), w, padding=4, dilation=2), t),
        3,
    ),
    "of an earlier token": (lambda x, t, w: cut(conv(first(x), w, padding=5), t), 3),
    "two outputs a channel": (lambda x, t, w: cut(conv(first(x), w), t), -3),
    "over one token": (lambda x, t, w: conv(first(x), w, padding=0), 1),
    "as the general op": (
        lambda x, t, w: cut(
            aten.convolution.default(first(x), w, None, [1], [2], [1], False, [0], WIDTH), t
        ),
        3,
    ),
    "joined with zeros": (lambda x, t, w: aten.mul.Tensor(joined(x, t), 2.0), 1),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_other_spellings(name: str) -> None:
    function, taps = SPELLINGS[name]
    weight = depthwise(taps) if taps > 0 else kernel(2 * WIDTH, 1, -taps)
    program = program_of(function, w=weight)
    check_pass(program, RecognizeCausalConv(), 1)
    left = {node.target for node in program.graph.nodes if node.op == "call_function"}
    assert not left & {aten.conv1d.default, aten.convolution.default, aten.constant_pad_nd.default}
    assert torch.ops.gw.conv_along_tokens.default in left


def test_shifts_of_a_shift_add_up() -> None:
    program = program_of(
        lambda x, t, w: aten.mul.Tensor(joined(joined(x, t), t), w), w=kernel(WIDTH)
    )
    check_pass(program, RecognizeCausalConv(), 1, "exact")
    assert body(program).count("gw.conv_along_tokens") == 1


def test_a_convolution_over_one_token_is_a_linear() -> None:
    program = program_of(
        lambda x, t, w: conv(first(x), w, padding=0, groups=1), w=kernel(5, WIDTH, 1)
    )
    check_pass(program, RecognizeCausalConv(), 1)
    assert "gw.conv_along_tokens" not in body(program)
    assert "aten.linear" in body(program)


def doubled(x: Any, w: Any, t: Any) -> Any:
    y = conv(first(x), w, padding=4)
    return cut(aten.mul.Tensor(aten.slice.Tensor(y, 2, 0, -1), aten.slice.Tensor(y, 2, 1)), t)


MISSES = {
    "joins pieces that are cut differently": (lambda x, t, w: doubled(x, w, t), 3),
    "not causal: it reads 1 tokens ahead": (lambda x, t, w: conv(first(x), w, padding=1), 3),
    "is not causal: it reads 2 tokens ahead": (
        lambda x, t, w: cut(aten.slice.Tensor(conv(first(x), w), 2, 2), t),
        3,
    ),
    "has stride 2: it gives no row for each token": (
        lambda x, t, w: conv(first(x), w, stride=2),
        3,
    ),
    "not causal: it reads 2 tokens ahead": (
        lambda x, t, w: aten.conv1d.padding(first(x), w, None, [1], "same", [2], WIDTH),
        3,
    ),
    "reads 80 tokens back; at most 64 are kept": (
        lambda x, t, w: cut(conv(first(x), w, padding=80, dilation=40), t),
        3,
    ),
    "the kernel of the convolution 'conv1d_default' is computed: 'exp_default'": (
        lambda x, t, w: cut(conv(first(x), aten.exp.default(w)), t),
        3,
    ),
    "uses all T + 2 elements of 'conv1d_default', not those of the T tokens": (
        lambda x, t, w: aten.mean.dim(conv(first(x), w), [2], True),
        3,
    ),
    "uses all T - 1 elements of 'slice_tensor', not those of the T tokens": (
        lambda x, t, w: aten.slice.Tensor(conv(first(x), w), 2, 0, -3),
        3,
    ),
    "are cut off and replaced by zeros": (
        lambda x, t, w: conv(padded(aten.slice.Tensor(first(x), 2, 1), 3), w, padding=0),
        3,
    ),
    "is not causal: it reads 1 tokens ahead": (
        lambda x, t, w: aten.constant_pad_nd.default(x, [0, 0, -1, 1]),
        3,
    ),
}


@pytest.mark.parametrize("reason", MISSES)
def test_near_misses_are_left_with_the_reason(reason: str) -> None:
    function, shape = MISSES[reason]
    program = program_of(function, w=kernel(*shape) if isinstance(shape, tuple) else depthwise())
    before = format_graph(program)
    counts, misses = fire(program, RecognizeCausalConv())
    assert counts == [0] and format_graph(program) == before
    assert any(reason in miss for miss in misses), misses


def decoder(after: Any, attention: Any = None) -> Program:
    """small_decoder with `after` behind its attention."""
    with enable_python_dispatcher():
        return small_decoder(attention or attend, after=after)


def attend(q: Any, k: Any, v: Any, m: Masks) -> Any:
    return aten.scaled_dot_product_attention.default(q, k, v, m.causal)


PASSES = (RecognizeAttention(), RecognizeCausalConv(), InsertKvCache(), SelectSampledRows())


def test_the_states_of_a_convolution_behind_attention() -> None:
    """Prefill, decode and ragged steps give the numbers of the stateless graph."""
    width = 32

    def after(x: Any) -> Any:
        shifted = aten.slice.Tensor(aten.constant_pad_nd.default(x, [0, 0, 2, 0]), 1, 0, -2)
        return aten.add.Tensor(x, shifted)

    program = decoder(after)
    assert check_decoder(program, *PASSES) == [1, 1, 2, 1]
    assert program.level is Level.CACHED
    cache, state = program.states
    assert isinstance(cache, KVState)
    assert state == ConvState("conv1", kept=2, channels=width, dtype=torch.float32)
    text = format_graph(program)
    assert "%conv1 : f32[N, 2, 32] = input\n" in text
    line = next(line for line in text.splitlines() if line.startswith("%causal_conv_1"))
    assert line.endswith(", %shift, None, %conv1, %positions, %query_start, %block_table)")
    assert text.index("gw.select_rows") > text.index("gw.causal_conv")


def test_a_decoder_without_attention() -> None:
    program = decoder(lambda x: aten.mul.Tensor(joined32(x), x), lambda q, k, v, m: q)
    assert check_decoder(program, *PASSES) == [0, 1, 1, 1]
    assert [state.name for state in program.states] == ["conv0"]


def joined32(x: Any) -> Any:
    zeros = aten.new_zeros.default(x, [1, 1, 32])
    return aten.cat.default([zeros, aten.slice.Tensor(x, 1, 0, -1)], 1)


def test_what_looks_ahead_cannot_be_decoded() -> None:
    def after(x: Any) -> Any:
        return aten.add.Tensor(x, aten.constant_pad_nd.default(x, [0, 0, -1, 1]))

    program = decoder(after)
    with pytest.raises(PassError, match=r"not causal: it reads 1 tokens ahead\. It cannot be dec"):
        check_decoder(program, *PASSES)


def test_a_first_row_that_is_not_zero_is_refused() -> None:
    def after(x: Any) -> Any:
        ones = aten.new_ones.default(x, [1, 1, 32])
        return aten.cat.default([ones, aten.slice.Tensor(x, 1, 0, -1)], 1)

    with pytest.raises(PassError, match="takes some of the tokens"):
        check_decoder(decoder(after), *PASSES)


def random_chain(x: Any, t: Any, w: Any, pick: random.Random) -> Any:
    """Pads, cuts and joins tokens at random, convolves them or not, and cuts them to T again."""
    x = first(x)
    y, more = x, 0  # elements more than tokens
    for _ in range(pick.randint(1, 3)):
        before, behind = pick.randint(0, 3), pick.randint(0, 2)
        kind = pick.choice(("pad", "join", "cut" if more > 0 else "pad"))
        if kind == "pad":
            y = aten.constant_pad_nd.default(y, [before, behind])
        elif kind == "join":
            zeros = [aten.new_zeros.default(x, [1, WIDTH, n]) for n in (before + 1, behind + 1)]
            y, before, behind = aten.cat.default([zeros[0], y, zeros[1]], 2), before + 1, behind + 1
        else:
            before, behind = min(before, 2), min(behind, 1)
            y = aten.slice.Tensor(y, 2, before, -behind if behind else 2**63 - 1)
            before, behind = -before, -behind
        more += before + behind
    if pick.random() < 0.7:
        padding, dilation = pick.randint(1, 4), pick.randint(1, 2)
        y = conv(y, w, padding=padding, dilation=dilation)
        more += 2 * padding - 2 * dilation
        if pick.random() < 0.5:
            y = aten.tanh.default(y)
    if more < 0:
        y, more = aten.constant_pad_nd.default(y, [0, -more]), 0
    start = pick.randint(0, more)
    return aten.mul.Tensor(aten.slice.Tensor(y, 2, start, start - more or 2**63 - 1), 3.0)


def test_random_chains_are_right_or_left_alone() -> None:
    rewritten = 0
    for seed in range(60):
        chain = functools.partial(random_chain, pick=random.Random(seed))
        program = program_of(chain, w=depthwise())
        before = program.copy()
        (count,), misses = fire(program, RecognizeCausalConv())
        inputs = random_inputs(before, 9)
        want, got = run_program(before, inputs), run_program(program, inputs)
        check_close(got, want)
        assert count or misses or not conv_ops(before), (seed, format_graph(before))
        rewritten += count
    assert rewritten >= 15


def conv_ops(program: Program) -> list[Any]:
    return [node for node in program.graph.nodes if node.target is aten.conv1d.default]
