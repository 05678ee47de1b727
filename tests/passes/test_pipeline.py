"""The whole pipeline: its order, and what it makes of a decoder, checked after every pass."""

from __future__ import annotations

import operator

import pytest
from tiny_models import tiny_model

from graphwright.frontend import capture_module
from graphwright.ir import Level
from graphwright.ir.layout import is_view
from graphwright.ir.op import is_gw_op
from graphwright.passes import PassContext, PipelineOptions, Recipe, Stage, pipeline, run_passes
from graphwright.passes.verification import NumericCheck


def test_stages_come_in_order_and_each_pass_once() -> None:
    passes = pipeline()
    order = list(Stage)
    positions = [order.index(step.stage) for step in passes]
    assert positions == sorted(positions)
    assert len({type(step) for step in passes}) == len(passes)


@pytest.mark.parametrize(("name", "gw_ops", "regions"), (("llama", 14, 1), ("gpt2", 12, 0)))
def test_a_decoder_becomes_few_phases(name: str, gw_ops: int, regions: int) -> None:
    program = capture_module(tiny_model(name, num_layers=1))
    options = PipelineOptions(Recipe.parse("w8"))
    run_passes(program, pipeline(options), PassContext(check=NumericCheck()))
    assert program.level is Level.PLANNED
    calls = [node for node in program.graph.nodes if node.op == "call_function"]
    for node in calls:
        assert is_gw_op(node.target) or node.target is operator.getitem or is_view(node)
    assert sum(is_gw_op(node.target) for node in calls) == gw_ops
    assert sum(node.op == "call_module" for node in program.graph.nodes) == regions
    verified = [record.verified for record in program.log if record.rewrites]
    assert all(error is not None and error <= 1 for error in verified)
