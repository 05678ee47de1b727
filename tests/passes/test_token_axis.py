"""The proof of per-token-ness: its rules against evaluation, and its reasons."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from graphs import build_program, rows

from graphwright.ir import PassError, Program
from graphwright.ir.interpreter import run_program
from graphwright.passes.token_axis import TokenAxisError, find_token_axes
from graphwright.passes.token_confirmation import confirm_token_axes

aten = torch.ops.aten
VOCAB, WIDTH = 7, 6
INPUTS = {name: rows(dtype=torch.int64, batch=False) for name in ("tokens", "positions")}


def program_of(function: Callable[..., Any], **weights: torch.Tensor) -> Program:
    """tokens, positions → function(h [T, 6], length, **weights); h depends on both inputs."""
    torch.manual_seed(0)

    def whole(tokens: Any, positions: Any, table: Any, places: Any, **more: Any) -> Any:
        h = aten.embedding.default(table, tokens)
        h = aten.add.Tensor(h, aten.embedding.default(places, positions))
        return function(h, aten.sym_size.int(tokens, 0), **more)

    given = {"table": torch.randn(VOCAB, WIDTH), "places": torch.randn(64, WIDTH), **weights}
    names = ", ".join(["tokens", "positions", *given])
    values = ", ".join(["tokens, positions, table, places", *(f"{n}={n}" for n in weights)])
    flat = eval(f"lambda {names}: whole({values})", {"whole": whole})
    return build_program(flat, **INPUTS, **given)  # type: ignore[arg-type]


def claimed_axis(program: Program) -> int | None:
    """The axis that the rules claim for the result; None when it refuses the program."""
    result = program.output
    spare = next(n for n in program.graph.nodes if n.target is aten.add.Tensor)
    program.graph.output_node().args = (spare,)
    try:
        axes = find_token_axes(program)
    except TokenAxisError:
        return None
    finally:
        program.graph.output_node().args = (result,)
    return axes[result]


def check_claim(program: Program, axis: int) -> None:
    """Rows of the result follow their tokens: one changed, some taken, the order changed."""
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(0, VOCAB, (5,), generator=generator)
    places = torch.randint(0, 60, (5,), generator=generator)
    whole = run_program(program, {"tokens": tokens, "positions": places})
    for chosen in ([3, 0, 4], [1], [4, 3, 2, 1, 0]):
        rows_ = torch.tensor(chosen)
        part = run_program(program, {"tokens": tokens[rows_], "positions": places[rows_]})
        torch.testing.assert_close(part, whole.index_select(axis, rows_), equal_nan=True)
    other = tokens.clone()
    other[2] = (other[2] + 1) % VOCAB
    changed = run_program(program, {"tokens": other, "positions": places})
    kept = torch.tensor([0, 1, 3, 4])
    torch.testing.assert_close(
        changed.index_select(axis, kept), whole.index_select(axis, kept), equal_nan=True
    )


# ---- random chains of ops: what is accepted is right


def random_op(x: Any, value: Any, length: Any, dice: random.Random) -> Any:
    """One op on `x`, whose meta value is `value`, along random axes."""
    rank = value.dim()
    dim, other = dice.randrange(rank), dice.randrange(rank)
    size = value.shape[dim]
    sizes = [s if isinstance(s, int) else -1 for s in value.shape]
    half = size // 2 if isinstance(size, int) else 2
    ops: list[Callable[[], Any]] = [
        lambda: aten.permute.default(x, dice.sample(range(rank), rank)),
        lambda: aten.transpose.int(x, dim, other),
        lambda: aten.unsqueeze.default(x, dice.randrange(rank + 1)),
        lambda: aten.reshape.default(x, [*sizes[:dim], 1, *sizes[dim:]]),
        lambda: aten.reshape.default(x, dice.sample(sizes, rank)),
        lambda: aten.reshape.default(x, [-1, *[s for s in sizes if s != -1][::-1]]),
        lambda: aten.reshape.default(x, [1, length, -1]),
        lambda: aten.mean.dim(x, [dim], dice.random() < 0.5),
        lambda: aten.amax.default(x, [dim], dice.random() < 0.5),
        lambda: aten.sum.dim_IntList(x, [dim, other] if dim != other else [dim], True),
        lambda: aten.var.correction(x, [dim], correction=0, keepdim=True),
        lambda: aten.softmax.int(x, dim),
        lambda: aten.cumsum.default(x, dim),
        lambda: aten.flip.default(x, [dim]),
        lambda: aten.sort.default(x, dim)[0],
        lambda: aten.topk.default(x, 1, dim)[0],
        lambda: aten.slice.Tensor(x, dim, 0, half),
        lambda: aten.slice.Tensor(x, dim, 0, length),
        lambda: aten.slice.Tensor(x, dim, 1, 2**63 - 1),
        lambda: aten.select.int(x, dim, 0),
        lambda: aten.unbind.int(x, dim)[0] if isinstance(size, int) else x,
        lambda: aten.cat.default([x, aten.mul.Tensor(x, 2)], dim),
        lambda: aten.stack.default([x, aten.exp.default(x)], dice.randrange(rank + 1)),
        lambda: aten.constant_pad_nd.default(x, [1, 0] * dice.randrange(1, rank + 1), 0.5),
        lambda: aten.repeat.default(x, [2 if i == dim else 1 for i in range(rank)]),
        lambda: aten.add.Tensor(x, aten.transpose.int(x, dim, other)),
        lambda: aten.mul.Tensor(x, aten.mean.dim(x, [dim], True)),
        lambda: aten.mul.Tensor(x, aten.slice.Tensor(x, dim, 0, 1)),
        lambda: aten.sub.Tensor(x, aten.select.int(x, dim, 0)),
        lambda: aten.matmul.default(x, aten.transpose.int(x, dim, other)),
        lambda: aten.matmul.default(aten.transpose.int(x, dim, other), x),
        lambda: aten.layer_norm.default(x, [s if isinstance(s, int) else length
                                            for s in value.shape[dim:]]),
        lambda: aten.tril.default(x),
        lambda: aten.mul.Tensor(x, length),
        lambda: aten.add.Tensor(x, x.tracer.create_proxy(
            "call_function", aten.full.default, ([1], length), {})),
        lambda: aten.add.Tensor(x, aten.expand.default(aten.mean.dim(x, [dim], True),
                                [length if s == -1 else s for s in sizes])),
        lambda: x if size == 1 else aten.gather.default(
            x, dim, aten._to_copy.default(aten.lt.Scalar(x, 0), dtype=torch.int64)
        ),
        lambda: aten.exp.default(aten.neg.default(aten.abs.default(x))),
    ]  # fmt: skip
    return dice.choice(ops)()


def random_program(seed: int) -> Program | None:
    """h → up to three random ops; None when they do not fit each other."""
    try:
        program = program_of(lambda h, length: h)
        graph = program.graph
        tracer = torch.fx.proxy.GraphAppendingTracer(graph)
        end = graph.output_node()
        dice = random.Random(seed)
        length = next(n for n in graph.nodes if n.target is aten.sym_size.int)
        here = program.output
        for _ in range(dice.randrange(1, 4)):
            known = set(graph.nodes)
            with graph.inserting_before(end):
                proxy = random_op(
                    torch.fx.Proxy(here, tracer), here.meta["val"],
                    torch.fx.Proxy(length, tracer), dice,
                )  # fmt: skip
            for node in graph.nodes:
                if node not in known:
                    program.infer(node)
            here = proxy.node
        end.args = (here,)
    except (RuntimeError, IndexError, ValueError, TypeError, PassError):
        return None
    return program


def test_what_the_rules_accept_keeps_tokens_apart() -> None:
    outcomes: Counter[str] = Counter()
    for seed in range(300):
        program = random_program(seed)
        if program is None:
            outcomes["does not fit"] += 1
            continue
        axis = claimed_axis(program)
        outcomes["refused" if axis is None else "accepted"] += 1
        if axis is not None:
            check_claim(program, axis)
    assert outcomes["accepted"] > 50 and outcomes["refused"] > 80, outcomes


# ---- what evaluation adds to the rules


def wrong(function: Callable[..., Any]) -> None:
    """Evaluation alone refutes the claim that the result has its token axis in front."""
    program = program_of(function)
    result = program.output
    axes = dict.fromkeys(program.graph.nodes)
    for node in program.graph.nodes:
        value = node.meta.get("val")
        if isinstance(value, torch.Tensor) and node.op != "get_attr":
            axes[node] = 0
    with pytest.raises(PassError, match="does not keep tokens apart") as caught:
        confirm_token_axes(program, axes)
    assert f"'{result.name}'" in str(caught.value)


def test_evaluation_refutes_a_wrong_claim_whatever_the_rules_say() -> None:
    wrong(lambda h, length: aten.cumsum.default(h, 0))
    wrong(lambda h, length: aten.flip.default(h, [0]))
    wrong(lambda h, length: aten.softmax.int(h, 0))
    wrong(lambda h, length: aten.mul.Tensor(h, length))
    wrong(lambda h, length: aten.tril.default(h))


def test_what_evaluation_cannot_look_at_is_said() -> None:
    program = program_of(
        lambda h, length, w: aten.linear.default(h, w), w=torch.zeros(2**18, WIDTH)
    )
    (left,) = confirm_token_axes(program, find_token_axes(program))
    assert "has an operand of more than" in left and "aten.linear" in left


# ---- reasons


REASONS: dict[str, Callable[..., Any]] = {
    "computes with the number of tokens": lambda h, n: aten.mul.Tensor(h, n),
    "takes a part of 'w' that depends on the number of tokens": lambda h, n, w: aten.add.Tensor(
        h, aten.slice.Tensor(w, 0, n - 1, n)
    ),
    "hides entries by the place": lambda h, n: aten.tril.default(h),
    "contracts the token axis": lambda h, n: aten.matmul.default(
        h, aten.matmul.default(aten.permute.default(h, [1, 0]), h)
    ),
    "reshapes tokens into another axis": lambda h, n: aten.reshape.default(
        aten.permute.default(h, [1, 0]), [-1, WIDTH]
    ),
    "normalizes over the token axis": lambda h, n: aten.permute.default(
        aten.group_norm.default(aten.reshape.default(aten.permute.default(h, [1, 0]),
                                                     [1, WIDTH, -1]), 2), [0, 2, 1]),
}  # fmt: skip


@pytest.mark.parametrize("reason", REASONS)
def test_the_reason_names_what_the_op_does(reason: str) -> None:
    weights = {"w": torch.zeros(9, WIDTH)} if "'w'" in reason else {}
    with pytest.raises(TokenAxisError, match=reason):
        find_token_axes(program_of(REASONS[reason], **weights))
