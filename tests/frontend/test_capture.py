"""Capture of modules: the traced program computes what the module computes, at every length."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from tiny_models import TINY_MODELS, random_tokens, tiny_model
from torch import nn
from torch.nn import functional as F

from graphwright.frontend import capture_module
from graphwright.frontend.stateless import float32_parameters
from graphwright.ir import ConstantTensor, Level, Program, format_graph
from graphwright.ir.interpreter import run_program
from graphwright.ir.tolerance import check_close
from graphwright.ir.verifier import verify_level
from graphwright.passes.canonicalize_ops import CanonicalizeOps
from graphwright.passes.drop_no_ops import DropNoOps
from graphwright.passes.eliminate_common_subexpressions import EliminateCommonSubexpressions
from graphwright.passes.fold_constants import FoldConstants
from graphwright.passes.rewrite_positions import RewritePositions
from graphwright.passes.running import run_passes

NORMALIZE = (
    DropNoOps(),
    CanonicalizeOps(),
    FoldConstants(),
    EliminateCommonSubexpressions(),
    RewritePositions(),
)
LENGTHS = (1, 2, 7, 33)
LAYERS = {"gemma2": 2}  # a window in the first, none in the second


class ByHand(nn.Module):
    """A decoder as people write it: positions counted inside, a stored mask, a tuple returned."""

    def __init__(self, places: str) -> None:
        super().__init__()
        self.places = places
        self.tokens, self.table = nn.Embedding(50, 32), nn.Embedding(64, 32)
        self.norm, self.qkv = nn.LayerNorm(32), nn.Linear(32, 96)
        self.head = nn.Linear(32, 50, bias=False)
        self.head.weight = self.tokens.weight
        self.mask: torch.Tensor
        self.register_buffer("mask", torch.tril(torch.ones(64, 64)).view(1, 1, 64, 64))

    def forward(self, idx: torch.Tensor, targets: Any = None) -> Any:
        batch, length = idx.shape
        assert length <= 64
        if self.places == "sliced":
            table = self.table.weight[:length]
        elif self.places == "counted":
            table = self.table(torch.arange(length))
        else:
            table = self.table(torch.ones_like(idx).cumsum(-1) - 1)
        x = self.tokens(idx) + table
        parts = self.qkv(self.norm(x)).split(32, dim=2)
        q, k, v = (part.view(batch, length, 4, 8).transpose(1, 2) for part in parts)
        scores = (q @ k.transpose(-2, -1)) * 0.35
        scores = scores.masked_fill(self.mask[:, :, :length, :length] == 0, float("-inf"))
        mixed = (F.softmax(scores, -1) @ v).transpose(1, 2).contiguous().view(batch, length, 32)
        return self.head(x + mixed), None


@functools.cache
def captured(name: str) -> tuple[nn.Module, Program, Program]:
    """A model, its program, and that normalized."""
    model = tiny_model(name, num_layers=LAYERS.get(name, 1))
    program = capture_module(model)
    return model, program, run_passes(program.copy(), NORMALIZE)


def eager(model: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        result = model(tokens[None])
    logits: torch.Tensor = result[0] if isinstance(result, tuple) else result.logits
    return logits[0]


def run(program: Program, tokens: torch.Tensor) -> torch.Tensor:
    return run_program(program, {"tokens": tokens, "positions": torch.arange(len(tokens))})


@pytest.mark.parametrize("name", TINY_MODELS)
def test_the_program_is_the_model(name: str) -> None:
    model, program, normalized = captured(name)
    verify_level(program)
    assert normalized.level is Level.NORMALIZED
    assert program.info.vocab_size == 128
    assert program.info.max_context == (None if name == "bloom" else 256)
    for length in LENGTHS:
        tokens = random_tokens(length, seed=length)
        want = eager(model, tokens)
        check_close(run(program, tokens), want, "exact")
        check_close(run(normalized, tokens), want)


@pytest.mark.parametrize("name", TINY_MODELS)
def test_normalizing_settles_and_leaves_no_litter(name: str) -> None:
    _, _, normalized = captured(name)
    again = run_passes(normalized.copy(), NORMALIZE)
    assert [record.rewrites for record in again.log[len(NORMALIZE) :]] == [0] * len(NORMALIZE)
    text = format_graph(normalized)
    for gone in ("view", "transpose", "clone", "_assert", "split", "addmm", "aten.t("):
        assert gone not in text


@pytest.mark.parametrize("places", ["sliced", "counted", "summed"])
def test_a_module_that_counts_its_own_positions(places: str) -> None:
    torch.manual_seed(0)
    model = ByHand(places)
    program = capture_module(model, name="by-hand")
    run_passes(program, NORMALIZE)
    assert program.info.name == "by-hand"
    assert program.info.vocab_size == 50
    assert program.info.max_context == 64
    assert any(len(node.users) for node in [program.placeholder("positions")])
    for length in LENGTHS:
        tokens = random_tokens(length, vocab_size=50)
        check_close(run(program, tokens), eager(model.eval(), tokens))


def test_the_module_is_left_as_it_was() -> None:
    model = ByHand("counted").to(torch.bfloat16)
    model.norm.eval()
    before = {name: (id(p), p.dtype) for name, p in model.named_parameters()}
    program = capture_module(model)
    assert {name: (id(p), p.dtype) for name, p in model.named_parameters()} == before
    assert model.training and not model.norm.training
    assert model.mask.dtype is torch.bfloat16
    assert model.head.weight is model.tokens.weight
    assert "head_weight" not in program.weights or "tokens_weight" not in program.weights


def test_compute_is_float32_whatever_the_parameters_are() -> None:
    model = tiny_model("llama", num_layers=1, dtype=torch.bfloat16)
    program = capture_module(model)
    kinds = {type(weight) for weight in program.weights._weights.values()}
    assert kinds == {ConstantTensor}  # so small that they are cast at once
    assert {weight.dtype for weight in program.weights._weights.values()} == {torch.float32}
    tokens = random_tokens(7)
    check_close(run(program, tokens), eager(model.float(), tokens), "exact")


def test_example_tokens_and_sizes_can_be_given() -> None:
    program = capture_module(
        ByHand("counted"), example_tokens=torch.zeros(1, 20), vocab_size=40, max_context=16
    )
    assert program.info.vocab_size == 40
    assert program.info.max_context == 16


def test_a_large_model_is_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only small ones are run on their weights, in float32."""
    copied = []

    def parameters(model: nn.Module, *, values: bool = False) -> Any:
        copied.append(values)
        return float32_parameters(model, values=values)

    monkeypatch.setattr("graphwright.frontend.check_lengths.float32_parameters", parameters)
    capture_module(tiny_model("llama"))
    assert copied == [True]
    monkeypatch.setattr("graphwright.frontend.capture._CHECKED_BYTES", 0)
    capture_module(tiny_model("llama"))
    assert copied == [True]
