"""Is a trace right for every length, also for those it did not see?"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.node import map_arg

from graphwright.frontend.stateless import StatelessForward, float32_parameters
from graphwright.ir.errors import FrontendError, PassError
from graphwright.ir.inference import Inference
from graphwright.ir.interpreter import Interpreter
from graphwright.ir.program import Program
from graphwright.ir.tolerance import check_close

__all__ = ["check_lengths", "check_positions"]

_LOG = logging.getLogger("graphwright.frontend")
_UNSEEN = 13  # tokens: the examples that are not given by the user have other lengths


def check_lengths(
    program: Program, forward: StatelessForward, least: int, most: int | None, *, small: bool
) -> None:
    """What was traced for `least` tokens or more must be right for 1, and for lengths unlike the
    example's up to `most`. Raises FrontendError.

    small: the model may be run. Its numbers are compared then, and shapes only where there are
    none. A trace made for long sequences is compared for all short ones in any case.
    """
    unseen = {1, min(_UNSEEN, most or _UNSEEN)}
    lengths = set(range(1, max(least, 3))) if small or least > 2 else set()
    try:
        compared = _compare(program, forward, sorted(lengths | unseen if small else lengths), least)
    except FrontendError:
        _check_shapes(program, unseen)  # which would name the line
        raise
    _check_shapes(program, unseen - compared)


def _check_shapes(program: Program, lengths: set[int]) -> None:
    for length in sorted(lengths):
        try:
            logits = _shapes(program, length)
        except FrontendError as error:
            reason = str(error).splitlines()[0]
            raise FrontendError(
                f"the trace of {program.info.name} does not work for {length} token(s): {reason}."
            ) from error
        _check_rows(program, logits, length)


def _check_rows(program: Program, logits: torch.Tensor, length: int) -> None:
    expected = (length, int(program.output.meta["val"].shape[-1]))
    if tuple(logits.shape) != expected:
        raise FrontendError(
            f"{program.info.name} returns logits of shape {list(logits.shape)} for {length} "
            f"token(s); expected {list(expected)}, one row per token."
        )


def _compare(
    program: Program, forward: StatelessForward, lengths: list[int], least: int
) -> set[int]:
    """Compares numbers with the model's own; the lengths that it takes itself.

    The numbers decide, and not what the trace asserts: most of it is about memory.
    """
    if not lengths:  # and no copy of a large model's weights
        return set()
    interpreter, compared = Interpreter(program, asserts=False), set()
    with float32_parameters(forward.model, values=True), torch.no_grad():
        for length in lengths:
            tokens = torch.arange(length) % program.info.vocab_size
            positions = torch.arange(length)
            try:
                want = forward(tokens, positions if forward.takes_positions else None)
            except (RuntimeError, ValueError, IndexError) as error:
                _LOG.info("the model itself does not take %d token(s): %s", length, error)
                continue
            if bool(want.isnan().any()) and (why := _not_finite(program)):
                raise FrontendError(f"the model's own logits for {length} token(s) are NaN: {why}.")
            try:
                got = interpreter.run({"tokens": tokens, "positions": positions})
                check_close(got, want)
                _check_rows(program, got, length)
            except (PassError, RuntimeError) as error:  # of numbers, or of shapes
                raise FrontendError(
                    f"{program.info.name} could only be traced for {least} tokens or "
                    f"more, and that trace is wrong for {length}: {error}"
                ) from error
            compared.add(length)
    return compared


def _not_finite(program: Program) -> str:
    """Which weight holds numbers that are not finite; "" when none does."""
    for name, weight in program.weights.items():
        value = weight.load() if weight.dtype.is_floating_point else torch.zeros(())
        count = int((~value.isfinite()).sum())
        if count:
            return f"{count} of {value.numel()} numbers of its weight '{name}' are NaN or infinite"
    return ""


def check_positions(forward: StatelessForward, length: int, vocab_size: int) -> None:
    """Positions 0, 1, 2, … must be what the model takes when it is given none.

    Raises FrontendError otherwise.
    """
    with float32_parameters(forward.model, values=True), torch.no_grad():
        tokens = torch.arange(length) % vocab_size
        given = forward(tokens, torch.arange(length))
        with forward.own_positions():
            own = forward(tokens)
        try:
            check_close(given, own)
        except PassError as error:
            raise FrontendError(
                f"{type(forward.model).__name__} counts positions in a way of its own, and cannot "
                f"be traced while it does: {error}"
            ) from error


def _shapes(program: Program, length: int) -> Any:
    """The logits as a fake tensor: the graph is run on shapes only, at one concrete length."""
    mode, inference = FakeTensorMode(), Inference()
    empty = torch.ops.aten.empty.memory_format
    values: dict[fx.Node, Any] = {}
    for node in program.graph.nodes:
        args, kwargs = map_arg((node.args, node.kwargs), values.__getitem__)
        try:
            if node.op == "output":
                return args[0]
            if node.op == "placeholder":
                with mode:
                    values[node] = torch.zeros(length, dtype=torch.int64)
            elif node.op == "get_attr":
                weight = program.weights[str(node.target)]
                shape, dtype = tuple(weight.shape), {"dtype": weight.dtype}
                values[node] = inference.call(empty, (shape,), dtype, mode)
            else:
                values[node] = inference.call(node.target, args, kwargs, mode)
        except Exception as error:
            lines = [line.strip() for line in (node.stack_trace or "").strip().splitlines()[-2:]]
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise FrontendError(f"{reason.rstrip('.')} ({', '.join(lines)})") from error
    raise AssertionError("the graph has no output")
