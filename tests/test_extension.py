"""An extension is one file: an op, a pass, a kernel and a lowering added from outside."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import fx

import graphwright
from graphwright.backends.tvm.context import LoweringContext, arguments
from graphwright.backends.tvm.kernels.kernel import Expr, Kernel, define
from graphwright.backends.tvm.kernels.loops import kernel_name, load, row_chunks, store, vector_loop
from graphwright.backends.tvm.kernels.vector import constant
from graphwright.backends.tvm.phases import Phase
from graphwright.backends.tvm.registry import lowering
from graphwright.backends.tvm.target import Cpu
from graphwright.ir.op import Sample, declare
from graphwright.ir.program import Program
from graphwright.passes.base import Pass, Stage
from graphwright.passes.form_regions import FormRegions

aten = torch.ops.aten


# ---- the op


@declare(
    "test_scale(Tensor x, *, float factor) -> Tensor",
    meta=lambda x, *, factor: torch.empty_like(x),
    samples=lambda: [Sample((torch.randn(3, 8),), {"factor": 0.5})],
)
def scale(x: torch.Tensor, *, factor: float) -> torch.Tensor:
    """x * factor. x [..., K] -> [..., K]."""
    return x * factor


# ---- the pass


@dataclass(frozen=True)
class FuseScale(Pass):
    """x * 3.5 → test_scale(x, 3.5). Leaves products with anything else."""

    stage: ClassVar = Stage.FUSE

    def run(self, program: Program) -> int:
        found = [
            node
            for node in program.graph.nodes
            if node.target is aten.mul.Tensor and node.args[1] == 3.5
        ]
        for node in found:
            new = program.call(node, scale.overload, node.args[0], factor=3.5)
            program.replace(node, new)
        return len(found)


# ---- the kernel and its lowering


def scale_kernel(k: int, *, x_stride: int, factor: float, cpu: Cpu) -> Kernel:
    """Pointers: x (rows of k elements), out [rows, k]."""

    def body(thread: Expr, threads: Expr, rows: Expr, x: Expr, out: Expr) -> None:
        def chunk(row: Expr, column: Expr, columns: int) -> None:
            def piece(first: Expr, width: int) -> None:
                value = load(x, row * x_stride + column + first, width)
                store(out, row * k + column + first, value * constant(factor, width), width)

            vector_loop(columns, cpu.lanes, piece)

        row_chunks(rows, k, cpu.lanes, thread, threads, chunk)

    name = kernel_name("test_scale", cpu, k=k, x=x_stride)
    return define(name, [("x", "float32"), ("out", "float32")], body)


@lowering(scale.overload)
def lower_scale(context: LoweringContext, node: fx.Node) -> tuple[Phase, ...]:
    """One phase."""
    given = arguments(node)
    view = context.view(given["x"])
    kernel = context.kernel(
        scale_kernel, view.row_size, x_stride=view.row_stride, factor=float(given["factor"])
    )
    operands = (context.value(given["x"]), *context.results(node))
    return (Phase(node.name, kernel, operands, context.rows(node)),)


# ---- the model that needs them


class Decoder(torch.nn.Module):
    """One attention layer, and the product that the pass looks for."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = torch.nn.Embedding(48, 32)
        self.qkv = torch.nn.Linear(32, 96)
        self.head = torch.nn.Linear(32, 48)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        batch, length = tokens.shape
        x = self.table(tokens)
        q, k, v = (
            part.view(batch, length, 4, 8).transpose(1, 2) for part in self.qkv(x).split(32, 2)
        )
        y = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        y = y.transpose(1, 2).reshape(batch, length, 32)
        logits: torch.Tensor = self.head(x + torch.tanh(y) * 3.5)
        return logits


def test_an_outside_op_pass_and_kernel_take_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline_module = import_module("graphwright.passes.pipeline")
    original = pipeline_module.pipeline

    def extended(options: Any = None) -> tuple[Pass, ...]:
        steps = list(original(options))
        place = next(i for i, step in enumerate(steps) if isinstance(step, FormRegions))
        return (*steps[:place], FuseScale(), *steps[place:])

    monkeypatch.setattr(pipeline_module, "pipeline", extended)
    model = Decoder().eval()
    compiled = graphwright.compile(model, check=True)
    assert {r.name: r.rewrites for r in compiled.program.log}["fuse-scale"] == 1
    assert "lower_scale" in " ".join(entry.lowering for entry in compiled.built.ledger)
    tokens = [3, 1, 40, 7, 22]
    got = graphwright.load(compiled.save(tmp_path / "x.gw")).logits(tokens)
    with torch.no_grad():
        want = model(torch.tensor([tokens]))[0]
    torch.testing.assert_close(torch.from_numpy(got), want, rtol=1e-5, atol=1e-5)
