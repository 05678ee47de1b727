"""run_passes: what is compared after a stage, and how the pass that went wrong is found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from small_decoders import Masks, small_decoder

from graphwright.ir import PassError, PassRecord, Program, format_graph
from graphwright.passes.base import Exactness, Pass, PassContext, Stage
from graphwright.passes.running import run_passes
from graphwright.passes.verification import NumericCheck

aten = torch.ops.aten


def decoder() -> Program:
    def attend(q: Any, k: Any, v: Any, m: Masks) -> Any:
        return aten.scaled_dot_product_attention.default(q, k, v, m.window(8))

    return small_decoder(attend)


@dataclass(frozen=True)
class _Scale(Pass):
    """logits -> logits * factor."""

    stage: ClassVar = Stage.NORMALIZE
    exactness: ClassVar = Exactness.REASSOCIATING
    factor: float = 1.0

    def run(self, program: Program) -> int:
        output = program.graph.output_node()
        output.args = (program.call(output, aten.mul.Scalar, program.output, self.factor),)
        return 1


@dataclass(frozen=True)
class _Double(_Scale):
    """logits -> 2 * logits, which is wrong, but for a pass that makes up for it."""

    factor: float = 2.0


@dataclass(frozen=True)
class _Halve(_Scale):
    """The pass that makes up for it."""

    factor: float = 0.5


@dataclass(frozen=True)
class _Nothing(_Scale):
    """Rewrites nothing."""

    def run(self, program: Program) -> int:
        return 0


@dataclass(frozen=True)
class _Fusing(_Scale):
    """The same in a later stage."""

    stage: ClassVar = Stage.FUSE


@dataclass(frozen=True)
class _Rough(_Scale):
    """Approximates, within its budget."""

    exactness: ClassVar = Exactness.APPROXIMATE
    factor: float = 1.01


class _Counting(NumericCheck):
    def __init__(self) -> None:
        super().__init__()
        self.compared: list[Exactness] = []

    def compare(self, program: Program, exactness: Exactness) -> float:
        self.compared.append(exactness)
        return super().compare(program, exactness)


def _run(passes: Sequence[Pass]) -> tuple[Program, _Counting, list[str], list[PassRecord]]:
    check, names, records = _Counting(), list[str](), list[PassRecord]()
    context = PassContext(
        check=check, on_graph=lambda name, _: names.append(name), on_record=records.append
    )
    program = run_passes(decoder(), passes, context)
    return program, check, names, records


def test_the_passes_of_a_stage_are_compared_together() -> None:
    passes = [_Scale(), _Nothing(), _Scale(), _Fusing(), _Fusing()]
    program, check, names, records = _run(passes)
    assert check.compared == [Exactness.REASSOCIATING] * 2
    assert [record.verified for record in records] == [0.0, None, 0.0, 0.0, 0.0]
    assert names == ["00-_scale", "01-_nothing", "02-_scale", "03-_fusing", "04-_fusing"]
    assert program.log == records


def test_a_pass_that_approximates_is_compared_for_itself() -> None:
    _, check, _, records = _run([_Scale(), _Rough(), _Scale(), _Rough()])
    assert check.compared == [
        Exactness.REASSOCIATING,
        Exactness.APPROXIMATE,
        Exactness.REASSOCIATING,
        Exactness.APPROXIMATE,
    ]
    errors = [record.verified for record in records]
    assert errors[0] == errors[2] == 0 and errors[1] and errors[3]


def test_the_pass_that_went_wrong_is_named() -> None:
    with pytest.raises(PassError) as caught:
        _run([_Scale(), _Fusing(), _Fusing(2.0), _Fusing()])
    assert str(caught.value).endswith("in pass '_fusing'; passes before it: _scale, _fusing.")
    assert "the pass changed the logits of a sequence of" in str(caught.value)


def test_an_earlier_wrong_pass_is_named_before_a_later_one_that_refuses() -> None:
    @dataclass(frozen=True)
    class Refuses(_Scale):
        def run(self, program: Program) -> int:
            raise PassError("not this one")

    with pytest.raises(PassError, match=r"changed the logits.*\n  in pass '_double'"):
        _run([_Double(), Refuses()])
    with pytest.raises(PassError, match=r"not this one\n  in pass 'refuses'; .*: _scale"):
        _run([_Scale(), Refuses()])


def test_passes_that_only_together_miss_the_tolerance_stand_each_for_itself() -> None:
    small = 1 + 2e-5  # twice as much as float32 sums in another order may differ, if done thrice
    passes = [_Scale(small), _Scale(small), _Scale(small)]
    program, check, names, records = _run(passes)
    assert check.compared == [Exactness.REASSOCIATING] * 4
    assert names == ["00-_scale", "01-_scale", "02-_scale"]
    assert program.log == records
    assert all(record.verified and record.verified < 1 for record in records)
    plain = run_passes(decoder(), passes, PassContext())
    assert format_graph(program) == format_graph(plain)


def test_fuel_is_what_it_was_when_passes_run_again() -> None:
    @dataclass(frozen=True)
    class Spends(_Double):
        def run(self, program: Program) -> int:
            return super().run(program) if self.allowed() else 0

    context = PassContext(check=NumericCheck(), fuel=1)
    with pytest.raises(PassError, match="in pass 'spends'"):
        run_passes(decoder(), [Spends()], context)
