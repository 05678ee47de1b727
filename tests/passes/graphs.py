"""Small programs for pass tests, written as Python functions over torch.ops.

    program = build_program(lambda x, w: gw.rms_norm.default(x, w, eps=1e-6),
                            x=rows(64), w=torch.ones(64))

A parameter is an input when its value is a `rows(...)`, a weight when it is a tensor. Inputs are
token-major, [1, T, ...]; `T` is the same symbol everywhere.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import (
    DimDynamic,
    ShapeEnv,
    StatelessSymbolicContext,
)

from graphwright.ir import ConstantTensor, Level, ModelInfo, Program, WeightStore
from graphwright.ir.interpreter import run_program
from graphwright.ir.tolerance import check_close
from graphwright.passes.base import Pass, PassContext
from graphwright.passes.running import run_passes

__all__ = ["Rows", "build_program", "check_pass", "fire", "random_inputs", "rows"]


@dataclass(frozen=True)
class Rows:
    """An input of shape [1, T, *sizes] ([T, *sizes] when `batch` is false)."""

    sizes: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    batch: bool = True

    def shape(self, tokens: Any) -> tuple[Any, ...]:
        """The shape for this many tokens."""
        return ((1,) if self.batch else ()) + (tokens, *self.sizes)


def rows(*sizes: int, dtype: torch.dtype = torch.float32, batch: bool = True) -> Rows:
    """An input for `build_program`. Integer inputs are drawn below 8 by `random_inputs`."""
    return Rows(sizes, dtype, batch)


def build_program(
    function: Callable[..., Any], level: Level = Level.NORMALIZED, **parameters: Rows | torch.Tensor
) -> Program:
    """The program of `function`, whose parameters are inputs (Rows) and weights (tensors)."""
    mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
    context: StatelessSymbolicContext[Any, Any] = StatelessSymbolicContext(
        dynamic_sizes=[DimDynamic.DYNAMIC]
    )
    tokens = mode.from_tensor(torch.empty(5), symbolic_context=context).shape[0]
    graph, root, weights = fx.Graph(), torch.nn.Module(), WeightStore()
    tracer = fx.proxy.GraphAppendingTracer(graph)
    order = list(inspect.signature(function).parameters)
    nodes: dict[str, fx.Node] = {}
    for name in sorted(order, key=lambda name: isinstance(parameters[name], torch.Tensor)):
        value = parameters[name]
        if isinstance(value, Rows):
            nodes[name] = graph.placeholder(name)
            with mode:
                nodes[name].meta["val"] = torch.empty(value.shape(tokens), dtype=value.dtype)
        else:
            weights[name] = ConstantTensor.of(value)
            root.register_buffer(name, torch.empty_like(value, device="meta"), persistent=False)
            nodes[name] = graph.get_attr(name)
            with mode:
                nodes[name].meta["val"] = torch.empty(value.shape, dtype=value.dtype)
    result = function(*(fx.Proxy(nodes[name], tracer) for name in order))
    graph.output(fx.node.map_aggregate(result, lambda p: p.node if isinstance(p, fx.Proxy) else p))
    program = Program(
        module=fx.GraphModule(root, graph),
        weights=weights,
        info=ModelInfo("small", 32),
        fake_mode=mode,
        dims={str(tokens): "T"},
        level=level,
    )
    for node in program.graph.nodes:
        if node.op == "call_function":
            program.infer(node)
    return program


def random_inputs(program: Program, tokens: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """One tensor for each placeholder of a built program."""
    generator = torch.Generator().manual_seed(seed)
    inputs = {}
    for node in program.graph.nodes:
        if node.op == "placeholder":
            value = node.meta["val"]
            shape = [tokens if isinstance(size, torch.SymInt) else size for size in value.shape]
            if value.dtype.is_floating_point:
                inputs[node.target] = torch.randn(shape, generator=generator).to(value.dtype)
            else:
                inputs[node.target] = torch.randint(0, 8, shape, generator=generator).to(
                    value.dtype
                )
    return inputs


def fire(program: Program, *passes: Pass) -> tuple[list[int], list[str]]:
    """Runs the passes in place; returns their rewrite counts and all near misses."""
    known = len(program.log)
    run_passes(program, passes, PassContext())
    records = program.log[known:]
    return [record.rewrites for record in records], [m for r in records for m in r.misses]


def check_pass(program: Program, step: Pass, rewrites: int, kind: str = "reassociating") -> None:
    """Fires `rewrites` times, keeps the numbers for 1 and 6 tokens, and then fires no more."""
    before = program.copy()
    counts, misses = fire(program, step)
    assert counts == [rewrites], (counts, misses)
    for tokens in (1, 6):
        inputs = random_inputs(before, tokens)
        want, got = run_program(before, inputs), run_program(program, inputs)
        check_close(got, want, kind)
    assert fire(program, step)[0] == [0]
