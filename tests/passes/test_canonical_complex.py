"""Complex numbers become their real and imaginary parts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from graphs import build_program, fire, random_inputs, rows

from graphwright.ir import PassError, Program, format_graph
from graphwright.ir.interpreter import run_program
from graphwright.ir.tolerance import check_close
from graphwright.passes.canonicalize_ops import CanonicalizeOps
from graphwright.passes.rope_pattern import match_rope

aten = torch.ops.aten
FREQUENCIES = torch.tensor([1.0, 0.1])


def turned(x: Any, positions: Any, frequencies: Any) -> Any:
    """Heads [1, T, 3, 4] turned by their positions, as pairs that are complex numbers."""
    angles = aten.mul.Tensor(aten.unsqueeze.default(positions, -1), frequencies)
    turns = aten.stack.default([aten.cos.default(angles), aten.sin.default(angles)], -1)
    numbers = aten.view_as_complex.default(aten.reshape.default(x, [1, -1, 3, 2, 2]))
    product = aten.mul.Tensor(
        numbers,
        aten.unsqueeze.default(aten.mul.Tensor(aten.view_as_complex.default(turns), 0.5), 2),
    )
    return aten.flatten.using_ints(aten.view_as_real.default(product), 3)


def test_a_complex_rotation_is_an_interleaved_one() -> None:
    program = build_program(turned, x=rows(3, 4), positions=rows(), frequencies=FREQUENCIES)
    before = program.copy()
    fire(program, CanonicalizeOps())
    lines = [line for line in format_graph(program).splitlines() if "aten." in line]
    assert [line.split(" = ")[1] for line in lines] == [
        "aten.unsqueeze(%positions, 2)",
        "aten.mul.Tensor(%unsqueeze_1, %frequencies)",
        "aten.cos(%mul_1)",
        "aten.sin(%mul_1)",
        "aten.slice.Tensor(%x, 3, 0, 4, 2)",
        "aten.slice.Tensor(%x, 3, 1, 4, 2)",
        "aten.mul.Tensor(%cos_1, 0.5)",
        "aten.mul.Tensor(%sin_1, 0.5)",
        "aten.unsqueeze(%mul_2, 2)",
        "aten.unsqueeze(%mul_3, 2)",
        "aten.mul.Tensor(%slice_1, %unsqueeze_2)",
        "aten.mul.Tensor(%slice_2, %unsqueeze_3)",
        "aten.mul.Tensor(%slice_1, %unsqueeze_3)",
        "aten.mul.Tensor(%slice_2, %unsqueeze_2)",
        "aten.sub.Tensor(%mul_4, %mul_5)",
        "aten.add.Tensor(%mul_6, %mul_7)",
        "aten.stack([%sub_1, %add_1], 4)",
        "aten.reshape(%stack_1, [1, -1, 3, 4])",
    ]
    rotation = match_rope(program.output)
    assert (rotation.x.name, rotation.interleaved, rotation.halves) == ("x", True, True)
    _same_numbers(program, before)
    assert fire(program, CanonicalizeOps())[0] == [0]


def as_pairs(x: Any) -> Any:
    """[1, T, 4, 6] as [1, T, 4, 3] complex numbers."""
    return aten.view_as_complex.default(aten.reshape.default(x, [1, -1, 4, 3, 2]))


real = aten.view_as_real.default
VALUES: dict[str, Callable[[Any], Any]] = {
    "there and back": lambda x: real(as_pairs(x)),
    "moved": lambda x: real(
        aten.select.int(
            aten.permute.default(aten.slice.Tensor(as_pairs(x), -1, 1, 3), [0, 1, 3, 2]), 2, 1
        )
    ),
    "joined": lambda x: real(aten.cat.default([as_pairs(x), aten.neg.default(as_pairs(x))], -1)),
    "conjugated": lambda x: real(aten.mul.Tensor(aten._conj.default(as_pairs(x)), as_pairs(x))),
    "scaled by a real value": lambda x: real(
        aten.mul.Tensor(aten.slice.Tensor(x, 3, 0, 3), as_pairs(x))
    ),
    "scaled by a value of double precision": lambda x: aten._to_copy.default(
        real(
            aten.mul.Tensor(
                as_pairs(x),
                aten._to_copy.default(aten.slice.Tensor(x, 3, 0, 3), dtype=torch.float64),
            )
        ),
        dtype=torch.float32,
    ),
    "divided": lambda x: real(aten.div.Tensor(as_pairs(x), 3.0)),
    "a sum": lambda x: real(aten.add.Tensor(as_pairs(x), aten.slice.Tensor(as_pairs(x), 2, 1, 2))),
    "its real part": lambda x: aten.real.default(as_pairs(x)),
    "its imaginary part": lambda x: aten.imag.default(as_pairs(x)),
    "cast to itself and back": lambda x: aten._to_copy.default(
        real(aten._to_copy.default(as_pairs(x), dtype=torch.complex128)), dtype=torch.float32
    ),
}


@pytest.mark.parametrize("name", VALUES)
def test_nothing_complex_is_left(name: str) -> None:
    program = build_program(VALUES[name], x=rows(4, 6))
    before = program.copy()
    fire(program, CanonicalizeOps())
    assert not _complex_nodes(program)
    _same_numbers(program, before)
    assert fire(program, CanonicalizeOps())[0] == [0]


def test_a_table_of_complex_numbers_is_two_tables() -> None:
    def looked_up(ids: Any, table: Any) -> Any:
        return real(aten.index.Tensor(table, [ids]))

    table = torch.polar(torch.rand(8, 3), torch.rand(8, 3))
    program = build_program(looked_up, ids=rows(dtype=torch.int64), table=table)
    before = program.copy()
    fire(program, CanonicalizeOps())
    program.clean()
    assert list(program.weights) == ["table_real", "table_imaginary"]
    _same_numbers(program, before)


def test_angles_and_lengths_are_products_with_cosine_and_sine() -> None:
    def looked_up(ids: Any, lengths: Any, angles: Any) -> Any:
        turns = aten.polar.default(lengths, angles)
        both = aten.mul.Tensor(turns, aten.complex.default(lengths, angles))
        return real(aten.index.Tensor(both, [ids]))

    lengths, angles = torch.rand(8, 3), torch.randn(8, 3)
    program = build_program(looked_up, ids=rows(dtype=torch.int64), lengths=lengths, angles=angles)
    before = program.copy()
    fire(program, CanonicalizeOps())
    assert not _complex_nodes(program)
    _same_numbers(program, before)


NEAR_MISSES: dict[str, Callable[[Any], Any]] = {
    "an unknown function": lambda x: real(aten.exp.default(as_pairs(x))),
    "a complex number": lambda x: real(aten.mul.Tensor(as_pairs(x), 1j)),
    "a real value is added": lambda x: real(
        aten.add.Tensor(as_pairs(x), aten.slice.Tensor(x, 3, 0, 3))
    ),
    "a length": lambda x: aten.abs.default(as_pairs(x)),
    "a real value is divided": lambda x: real(
        aten.div.Tensor(aten.slice.Tensor(x, 3, 0, 3), as_pairs(x))
    ),
}


@pytest.mark.parametrize("name", NEAR_MISSES)
def test_what_is_not_known_stays_complex_and_is_refused(name: str) -> None:
    program = build_program(NEAR_MISSES[name], x=rows(4, 6))
    with pytest.raises(PassError, match="complex"):
        fire(program, CanonicalizeOps())
    assert _complex_nodes(program)


def test_values_of_a_complex_table_are_refused() -> None:
    def looked_up(ids: Any, table: Any) -> Any:
        return aten.abs.default(aten.index.Tensor(table, [ids]))

    table = torch.polar(torch.rand(8, 3), torch.rand(8, 3))
    program = build_program(looked_up, ids=rows(dtype=torch.int64), table=table)
    with pytest.raises(PassError, match="'table' holds complex numbers"):
        fire(program, CanonicalizeOps())


def _complex_nodes(program: Program) -> list[str]:
    values = {node.name: node.meta.get("val") for node in program.graph.nodes}
    return [n for n, v in values.items() if isinstance(v, torch.Tensor) and v.is_complex()]


def _same_numbers(program: Program, before: Program) -> None:
    for tokens in (1, 6):
        inputs = random_inputs(before, tokens)
        want, got = run_program(before, inputs), run_program(program, inputs)
        check_close(got, want, "reassociating")
