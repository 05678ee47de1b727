"""fold-constants."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from graphs import build_program, check_pass, fire, rows
from safetensors.torch import save_file

from graphwright.ir import (
    CheckpointTensor,
    ConstantTensor,
    Expression,
    Level,
    TensorFile,
    format_graph,
)
from graphwright.passes.fold_constants import FoldConstants

aten = torch.ops.aten
STEP = FoldConstants()


def test_what_weights_make_is_a_weight() -> None:
    def function(x: Any, w: Any) -> Any:
        scale = aten.add.Tensor(aten.permute.default(w, [1, 0]), 1.0)
        return aten.mul.Tensor(x, aten.select.int(scale, 0, 0))

    program = build_program(function, x=rows(4), w=torch.randn(4, 3))
    check_pass(program, STEP, 1, "exact")
    expected = """\
%x : f32[1, T, 4] = input
%w_1 : f32[4] = weight
%mul_1 : f32[1, T, 4] = aten.mul.Tensor(%x, %w_1)
return %mul_1
"""
    assert format_graph(program) == expected
    assert isinstance(program.weights["w_1"], ConstantTensor)


def test_a_constant_number_is_written_as_a_number() -> None:
    def function(x: Any, w: Any, s: Any) -> Any:
        x = aten.where.self(aten.gt.Scalar(x, 0), x, s)
        return aten.mul.Tensor(w, aten.div.Tensor(x, w))

    program = build_program(function, x=rows(4), w=torch.tensor(8.0), s=torch.tensor(0.5))
    check_pass(program, STEP, 3, "exact")
    expected = """\
%x : f32[1, T, 4] = input
%gt_1 : bool[1, T, 4] = aten.gt.Scalar(%x, 0)
%where_1 : f32[1, T, 4] = aten.where.ScalarOther(%gt_1, %x, 0.5)
%div_1 : f32[1, T, 4] = aten.div.Tensor(%where_1, 8.0)
%mul_1 : f32[1, T, 4] = aten.mul.Tensor(%div_1, 8.0)
return %mul_1
"""
    assert format_graph(program) == expected


def test_a_checkpoint_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = torch.randn(4, 4)
    save_file({"w": tensor}, tmp_path / "model.safetensors")
    program = build_program(
        lambda x, w: aten.add.Tensor(x, aten.select.int(aten.neg.default(w), 0, 1)),
        x=rows(4),
        w=tensor,
    )
    file = TensorFile(tmp_path / "model.safetensors")
    program.weights["w"] = CheckpointTensor((4, 4), torch.float32, file, "w")
    with monkeypatch.context() as context:
        context.setattr(CheckpointTensor, "load", lambda self: pytest.fail("the file was read"))
        assert fire(program, STEP)[0] == [1]
    folded = program.weights["w_1"]
    assert isinstance(folded, Expression)
    assert folded.describe() == "select(neg(model.safetensors:w))"
    assert torch.equal(folded.load(), -tensor[1])


def test_a_large_result_stays_lazy() -> None:
    program = build_program(
        lambda x, w: aten.linear.default(x, aten.permute.default(w, [1, 0])),
        x=rows(200),
        w=torch.randn(200, 200),
    )
    check_pass(program, STEP, 1, "exact")
    assert isinstance(program.weights["w_1"], Expression)


def test_what_depends_on_tokens_or_chance_stays() -> None:
    def function(x: Any, w: Any) -> Any:
        length = aten.sym_size.int(x, 1)
        counted = aten.add.Tensor(aten.arange.default(length), 1)
        noise = aten.bernoulli.default(w)
        return aten.add.Tensor(aten.add.Tensor(x, noise), aten.unsqueeze.default(counted, 1))

    program = build_program(function, Level.CAPTURED, x=rows(3), w=torch.rand(3))
    assert fire(program, STEP)[0] == [0]


def test_a_result_much_larger_than_its_sources_stays() -> None:
    def function(x: Any, w: Any) -> Any:
        wide = aten.mul.Tensor(aten.expand.default(w, [20000, 4]), 2.0)
        return aten.add.Tensor(x, aten.select.int(wide, 0, 7))

    program = build_program(function, x=rows(4), w=torch.rand(4))
    counts, misses = fire(program, STEP)
    assert counts == [0]
    assert "would make a constant of 320000 bytes" in misses[0]


@pytest.mark.parametrize(
    "function",
    [
        lambda x, w: aten.sub.Tensor(w, x),  # no overload takes a number on the left
        lambda x, w: aten.add.Tensor(x, w, alpha=2),
        lambda x, w: aten.add.Tensor(x, w),  # the sum is float64, with a number float32
    ],
)
def test_numbers_that_must_stay_tensors(function: Any) -> None:
    weight = torch.tensor(8.0, dtype=torch.float64)
    program = build_program(function, x=rows(4, dtype=torch.int64), w=weight)
    assert fire(program, STEP)[0] == [0]
