"""canonicalize-ops."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from graphs import build_program, check_pass, fire, random_inputs, rows

from graphwright.ir import format_graph
from graphwright.ir.interpreter import run_program
from graphwright.passes.canonicalize_ops import CanonicalizeOps

aten = torch.ops.aten
STEP = CanonicalizeOps()


def texts(program: Any) -> list[str]:
    """The calls of the graph, one line each, without results."""
    lines = format_graph(program).splitlines()
    return [line.split(" = ")[1] for line in lines if "aten." in line]


def _normalized(x: Any, axis: int) -> Any:
    parts = aten.exp.default(x)
    return aten.div.Tensor(parts, aten.sum.dim_IntList(parts, [axis], True))


# What is written, and the calls it becomes. x is [1, T, 4, 6], y is [1, T, 24].
SPELLINGS: dict[str, tuple[Callable[[Any], Any], list[str]]] = {
    "flatten": (
        lambda x: aten.flatten.using_ints(x, 2),
        ["aten.reshape(%x, [1, -1, 24])"],
    ),
    "reshapes meet": (
        lambda x: aten.reshape.default(aten.reshape.default(x, [-1, 24]), [1, -1, 8, 3]),
        ["aten.reshape(%x, [1, -1, 8, 3])"],
    ),
    "reshapes cancel": (
        lambda x: aten.neg.default(
            aten.reshape.default(aten.reshape.default(x, [-1, 24]), [1, -1, 4, 6])
        ),
        ["aten.neg(%x)"],
    ),
    "unsqueeze and reshape": (
        lambda x: aten.reshape.default(aten.unsqueeze.default(x, 2), [1, -1, 24]),
        ["aten.reshape(%x, [1, -1, 24])"],
    ),
    "squeeze": (
        lambda x: aten.squeeze.dims(aten.slice.Tensor(x, 2, 0, 1), [0, 2]),
        ["aten.slice.Tensor(%x, 2, 0, 1)", "aten.reshape(%slice_1, [-1, 6])"],
    ),
    "an empty part": (
        lambda x: aten.neg.default(aten.cat.default([aten.slice.Tensor(x, 2, 0, 0), x], 2)),
        ["aten.neg(%x)"],
    ),
    "nothing added": (
        lambda x: aten.neg.default(aten.add.Tensor(aten.zeros_like.default(x), x)),
        ["aten.neg(%x)"],
    ),
    "a norm of turned heads": (
        lambda x: aten.rms_norm.default(aten.permute.default(x, [0, 2, 1, 3]), [6]),
        ["aten.rms_norm(%x, [6])", "aten.permute(%rms_norm_1, [0, 2, 1, 3])"],
    ),
    "a norm behind the tokens": (
        lambda x: aten.layer_norm.default(
            aten.select.int(aten.permute.default(x, [2, 0, 1, 3]), 1, 0), [6]
        ),
        [
            "aten.permute(%x, [2, 0, 1, 3])",
            "aten.select.int(%permute_1, 1, 0)",
            "aten.permute(%select_1, [1, 0, 2])",
            "aten.layer_norm(%permute_2, [6])",
            "aten.permute(%layer_norm_1, [1, 0, 2])",
        ],
    ),
    "transpose": (
        lambda x: aten.transpose.int(x, 1, -2),
        ["aten.permute(%x, [0, 2, 1, 3])"],
    ),
    "permutations meet": (
        lambda x: aten.permute.default(aten.transpose.int(x, 1, 2), [0, -1, 1, 2]),
        ["aten.permute(%x, [0, 3, 2, 1])"],
    ),
    "permutations cancel": (
        lambda x: aten.neg.default(aten.transpose.int(aten.transpose.int(x, 1, 2), 2, 1)),
        ["aten.neg(%x)"],
    ),
    "unfold": (
        lambda x: aten.unfold.default(x, -1, 5, 1),
        [
            "aten.slice.Tensor(%x, 3, 0, 2)",
            "aten.slice.Tensor(%x, 3, 1, 3)",
            "aten.slice.Tensor(%x, 3, 2, 4)",
            "aten.slice.Tensor(%x, 3, 3, 5)",
            "aten.slice.Tensor(%x, 3, 4, 6)",
            "aten.stack([%slice_1, %slice_2, %slice_3, %slice_4, %slice_5], 4)",
        ],
    ),
    "padding": (
        lambda x: aten.pad.default(x, [0, 2]),
        ["aten.constant_pad_nd(%x, [0, 2], 0)"],
    ),
    "slice": (
        lambda x: aten.slice.Tensor(x, -1, -3, 2**63 - 1),
        ["aten.slice.Tensor(%x, 3, 3, 6)"],
    ),
    "select": (lambda x: aten.select.int(x, -1, -2), ["aten.select.int(%x, 3, 4)"]),
    "expand": (
        lambda x: aten.expand.default(aten.slice.Tensor(x, 2, 0, 1), [1, -1, 3, 6]),
        ["aten.slice.Tensor(%x, 2, 0, 1)", "aten.expand(%slice_1, [-1, -1, 3, -1])"],
    ),
    "unbind": (
        lambda x: aten.add.Tensor(aten.unbind.int(x, 2)[0], aten.unbind.int(x, 2)[3]),
        [
            "aten.select.int(%x, 2, 0)",
            "aten.select.int(%x, 2, 3)",
            "aten.add.Tensor(%select_1, %select_2)",
        ],
    ),
    "split": (
        lambda x: aten.split.Tensor(x, 4, -1)[1],
        ["aten.slice.Tensor(%x, 3, 4, 6)"],
    ),
    "split with sizes": (
        lambda x: aten.split_with_sizes.default(x, [1, 2, 3], 3)[1],
        ["aten.slice.Tensor(%x, 3, 1, 3)"],
    ),
    "chunk": (lambda x: aten.chunk.default(x, 2, 2)[1], ["aten.slice.Tensor(%x, 2, 2, 4)"]),
    "a softmax by its definition": (
        lambda x: _normalized(x, -1),
        ["aten.softmax.int(%x, -1)"],
    ),
    "a sum along another axis": (
        lambda x: _normalized(x, 2),
        ["aten.softmax.int(%x, 2)"],
    ),
    "exp of a logarithm": (
        lambda x: aten.exp.default(aten._log_softmax.default(x, -1, False)),
        ["aten.softmax.int(%x, -1)"],
    ),
    "log softmax": (
        lambda x: aten.log_softmax.int(x, -1),
        [
            "aten.amax(%x, [-1], True)",
            "aten.sub.Tensor(%x, %amax_1)",
            "aten.exp(%sub_1)",
            "aten.sum.dim_IntList(%exp_1, [-1], True)",
            "aten.log(%sum_1)",
            "aten.sub.Tensor(%sub_1, %log_1)",
        ],
    ),
    "square": (lambda x: aten.square.default(x), ["aten.pow.Tensor_Scalar(%x, 2)"]),
    "x times x": (lambda x: aten.mul.Tensor(x, x), ["aten.pow.Tensor_Scalar(%x, 2)"]),
    "whole exponent": (
        lambda x: aten.pow.Tensor_Scalar(x, 3.0),
        ["aten.pow.Tensor_Scalar(%x, 3)"],
    ),
    "scalar overload": (lambda x: aten.add.Scalar(x, 2), ["aten.add.Tensor(%x, 2)"]),
    "reverse subtraction": (
        lambda x: aten.rsub.Scalar(x, 1.0),
        ["aten.neg(%x)", "aten.add.Tensor(%neg_1, 1.0)"],
    ),
    "reduced axis": (lambda x: aten.mean.dim(x, [3], True), ["aten.mean.dim(%x, [-1], True)"]),
    "norm of order 1": (
        lambda x: aten.linalg_vector_norm.default(x, 1.0, [-1], True),
        ["aten.abs(%x)", "aten.sum.dim_IntList(%abs_1, [-1], True)"],
    ),
    "norm of order infinity": (
        lambda x: aten.linalg_vector_norm.default(x, float("inf"), [2]),
        ["aten.abs(%x)", "aten.amax(%abs_1, [2], False)"],
    ),
    "norm of the least": (
        lambda x: aten.linalg_vector_norm.default(x, float("-inf"), [2]),
        ["aten.abs(%x)", "aten.amin(%abs_1, [2], False)"],
    ),
    "norm of another order": (
        lambda x: aten.linalg_vector_norm.default(x, 4.0, [-1]),
        [
            "aten.abs(%x)",
            "aten.pow.Tensor_Scalar(%abs_1, 4)",
            "aten.sum.dim_IntList(%pow_1, [-1], False)",
            "aten.pow.Tensor_Scalar(%sum_1, 0.25)",
        ],
    ),
    "max along an axis": (
        lambda x: aten.max.dim(x, 2, True)[0],
        ["aten.amax(%x, [2], True)"],
    ),
    "softmax": (
        lambda x: aten._softmax.default(x, -1, False),
        ["aten.softmax.int(%x, -1)"],
    ),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_one_spelling(name: str) -> None:
    function, expected = SPELLINGS[name]
    program = build_program(function, x=rows(4, 6))
    before = program.copy()
    (count,), _ = fire(program, STEP)
    assert count > 0
    assert texts(program) == expected
    check_pass(before, STEP, count)


def test_a_row_looked_up_for_every_token_is_broadcast() -> None:
    """The kinds of tokens that a text of one part has: all are 0."""

    def function(x: Any, w: Any) -> Any:
        ids = aten.zeros_like.default(aten.select.int(x, 2, 0), dtype=torch.int64)
        return aten.add.Tensor(x, aten.embedding.default(w, ids))

    program = build_program(function, x=rows(6), w=torch.randn(2, 6))
    check_pass(program, STEP, 2, "exact")
    assert texts(program) == ["aten.select.int(%w, 0, 0)", "aten.add.Tensor(%x, %select_1)"]


def test_a_product_by_a_weight_is_linear() -> None:
    """addmm between reshapes, as in models that store weights transposed."""

    def function(x: Any, w: Any, b: Any) -> Any:
        flat = aten.addmm.default(b, aten.reshape.default(x, [-1, 6]), w)
        return aten.reshape.default(flat, [1, -1, 5])

    program = build_program(function, x=rows(6), w=torch.randn(6, 5), b=torch.randn(5))
    check_pass(program, STEP, 3)
    expected = ["aten.permute(%w, [1, 0])", "aten.linear(%x, %permute_1, %b)"]
    assert texts(program) == expected


@pytest.mark.parametrize("op", [aten.matmul.default, aten.mm.default])
def test_a_matmul_by_a_transposed_weight_is_linear(op: Any) -> None:
    program = build_program(
        lambda x, w: op(x, aten.t.default(w)), x=rows(6, batch=False), w=torch.randn(5, 6)
    )
    check_pass(program, STEP, 3)
    assert texts(program) == ["aten.linear(%x, %w)"]


def test_an_outer_product_is_a_multiplication() -> None:
    program = build_program(lambda x, w: aten.matmul.default(x, w), x=rows(1), w=torch.randn(1, 8))
    check_pass(program, STEP, 1, "exact")
    assert texts(program) == ["aten.mul.Tensor(%x, %w)"]


def test_the_batch_axis_stays_through_a_block_without_it() -> None:
    def function(x: Any, w: Any, g: Any) -> Any:
        flat = aten.reshape.default(x, [-1, 6])
        hidden = aten.relu.default(aten.linear.default(aten.layer_norm.default(flat, [6], g), w))
        return aten.reshape.default(aten.add.Tensor(flat, hidden), [1, -1, 6])

    program = build_program(function, x=rows(6), w=torch.randn(6, 6), g=torch.randn(6))
    (count,), _ = fire(program, STEP)
    assert count > 0
    assert not any("reshape" in text for text in texts(program))


def test_consecutive_constants_are_a_slice() -> None:
    index = torch.tensor([-2, -1])
    program = build_program(
        lambda x, i: aten.index.Tensor(x, [None, None, i]), x=rows(4, 6), i=index
    )
    check_pass(program, STEP, 1, "exact")
    assert texts(program) == ["aten.slice.Tensor(%x, 2, 2, 4)"]


@pytest.mark.parametrize(
    "function",
    [
        lambda x, w: aten.matmul.default(x, aten.transpose.int(x, 1, 2)),  # no weight
        lambda x, w: aten.addmm.default(aten.slice.Tensor(w, 0, 0, 1), aten.squeeze.dim(x, 0), w),
        lambda x, w: aten.split.Tensor(x, 2, 1)[0],  # along the tokens
        lambda x, w: aten.pow.Tensor_Scalar(x, 2.5),
        lambda x, w: aten.mul.Tensor(x, aten.neg.default(x)),
        lambda x, w: aten.sub.Tensor(x, aten.select.int(w, 0, 0), alpha=2),
    ],
)
def test_near_misses_stay(function: Any) -> None:
    program = build_program(function, x=rows(6), w=torch.randn(6, 6))
    keep = [node.target for node in program.graph.nodes if node.op == "call_function"]
    fire(program, STEP)
    after = [node.target for node in program.graph.nodes if node.op == "call_function"]
    spelled = {aten.transpose.int: aten.permute.default}
    assert after == [spelled.get(target, target) for target in keep]


def test_an_identity_matrix_is_a_weight() -> None:
    program = build_program(lambda x: aten.neg.default(aten.slice.Tensor(x, 3, 0, 4)), x=rows(4, 6))
    last = program.output
    eye = program.call(last, aten.eye.default, 4)
    program.replace(last, program.call(last, aten.mul.Tensor, last.args[0], eye))
    inputs = random_inputs(program, 6)
    fire(program, STEP)
    assert texts(program) == [
        "aten.slice.Tensor(%x, 3, 0, 4)",
        "aten.mul.Tensor(%slice_1, %identity)",
    ]
    want = inputs["x"][..., :4] * torch.eye(4)
    torch.testing.assert_close(run_program(program, inputs), want, rtol=0, atol=0)
    assert fire(program, STEP)[0] == [0]
