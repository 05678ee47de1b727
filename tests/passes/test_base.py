"""The pass base class: order, fuel, records, naming of what failed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from graphwright.ir.errors import PassError
from graphwright.ir.printer import format_graph
from graphwright.ir.program import Level, ModelInfo, Program
from graphwright.ir.weights import ConstantTensor, WeightStore
from graphwright.passes.base import Exactness, Pass, PassContext, Stage
from graphwright.passes.running import run_passes

aten = torch.ops.aten


def small_program() -> Program:
    """tokens -> embedding row sums, negated twice: two rewrites for the pass below."""
    graph = fx.Graph()
    graph.placeholder("anchor")
    graph.output(())
    program = Program(
        module=fx.GraphModule(torch.nn.Module(), graph),
        weights=WeightStore(),
        info=ModelInfo("small", 4),
        fake_mode=FakeTensorMode(shape_env=ShapeEnv()),
        level=Level.NORMALIZED,
    )
    anchor = next(iter(graph.nodes))
    tokens = program.add_input("tokens", ["T"], torch.int64)
    graph.erase_node(anchor)
    table = program.add_weight("table", ConstantTensor.of(torch.randn(4, 3)))
    end = graph.output_node()
    value = program.call(end, aten.embedding.default, table, tokens)
    for _ in range(4):
        value = program.call(end, aten.neg.default, value)
    end.args = (value,)
    program.clean()
    return program


def test_sizes_of_one_name_are_one_size() -> None:
    program = small_program()
    first = program.add_input("first", ["N", 16], torch.float32)
    second = program.add_input("second", ["M", "N"], torch.int8)
    (n, _), (m, same) = first.meta["val"].shape, second.meta["val"].shape
    assert str(same) == str(n) != str(m)
    assert sorted(program.dims.values()) == ["M", "N", "T"]
    program.dims["s999"] = "gone"
    with pytest.raises(ValueError, match="no input has the dimension 'gone'"):
        program.add_input("third", ["gone"], torch.int8)


@dataclass(frozen=True)
class DropDoubleNegation(Pass):
    """-(-x) → x. Leaves a single negation."""

    stage: ClassVar = Stage.NORMALIZE
    exactness: ClassVar = Exactness.EXACT

    def run(self, program: Program) -> int:
        count = 0
        for node in list(program.graph.nodes):
            inner = node.args[0] if node.target is aten.neg.default else None
            if isinstance(inner, fx.Node) and inner.target is aten.neg.default:
                if not self.allowed():
                    break
                node.replace_all_uses_with(inner.args[0])
                count += 1
        return count


@dataclass(frozen=True)
class Later(DropDoubleNegation):
    """The same, but only after the first."""

    after: ClassVar = (DropDoubleNegation,)


def test_a_pass_is_counted_named_and_recorded() -> None:
    program = run_passes(small_program(), [DropDoubleNegation(), DropDoubleNegation()])
    first, second = program.log
    assert (first.name, first.rewrites, second.rewrites) == ("drop-double-negation", 2, 0)
    assert (first.nodes_before, first.nodes_after) == (8, 4)
    assert format_graph(program) == (
        "%tokens : i64[T] = input\n"
        "%table : f32[4, 3] = weight\n"
        "%embedding_1 : f32[T, 3] = aten.embedding(%table, %tokens)\n"
        "return %embedding_1\n"
    )


@pytest.mark.parametrize("fuel", [0, 1, 2])
def test_fuel_stops_after_that_many_rewrites(fuel: int) -> None:
    program = run_passes(small_program(), [DropDoubleNegation()], PassContext(fuel=fuel))
    assert program.log[0].rewrites == fuel


def test_fuel_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAPHWRIGHT_FUEL", "1")
    assert run_passes(small_program(), [DropDoubleNegation()]).log[0].rewrites == 1
    monkeypatch.setenv("GRAPHWRIGHT_FUEL", "many")
    with pytest.raises(PassError, match="number of rewrites, not 'many'"):
        run_passes(small_program(), [DropDoubleNegation()])


def test_order_is_checked_before_anything_runs() -> None:
    program = small_program()
    with pytest.raises(PassError, match="'later' must come after 'drop-double-negation'"):
        run_passes(program, [Later(), DropDoubleNegation()])
    assert program.log == []


def test_a_failing_check_names_the_pass_and_those_before_it() -> None:
    class Check:
        def remember(self, program: Program) -> None:
            assert len(program.log) == 1

        def compare(self, program: Program, exactness: Exactness) -> float:
            raise PassError("numbers differ")

    program = small_program()
    run_passes(program, [DropDoubleNegation()])
    program.graph.output_node().args = (
        program.call(program.graph.output_node(), aten.neg.default, program.output),
    )
    program.graph.output_node().args = (
        program.call(program.graph.output_node(), aten.neg.default, program.output),
    )
    with pytest.raises(PassError, match="in pass 'later'; passes before it: drop-double-negation"):
        run_passes(program, [Later()], PassContext(check=Check()))


def test_an_op_of_another_level_is_refused_by_name() -> None:
    program = small_program()
    program.level = Level.PLANNED
    with pytest.raises(PassError, match=r"aten\.embedding\.default, which level 'planned'"):
        run_passes(program, [DropDoubleNegation()])
