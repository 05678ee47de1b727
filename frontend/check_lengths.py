"""Is a trace right for every length, also for those it did not see?"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode

from graphwright.frontend.stateless import StatelessForward, float32_parameters
from graphwright.ir.errors import FrontendError, PassError
from graphwright.ir.interpreter import run_program
from graphwright.ir.program import Program
from graphwright.ir.tolerance import check_close

__all__ = ["check_against_eager", "check_shapes"]


def check_shapes(program: Program, most: int | None) -> None:
    """The shapes must work out at lengths the trace did not see. Raises FrontendError."""
    for length in (1, min(13, most or 13)):
        mode = FakeTensorMode()
        shapes = _Shapes(program, mode)
        with mode, torch.no_grad():
            tokens = torch.zeros(length, dtype=torch.int64)
            try:
                logits = shapes.run(tokens, tokens.clone(), enable_io_processing=False)
            except FrontendError as error:
                reason = str(error).splitlines()[0]
                raise FrontendError(
                    f"the trace of {program.info.name} does not work for {length} token(s): "
                    f"{reason}."
                ) from error
        expected = (length, int(program.output.meta["val"].shape[-1]))
        if tuple(logits.shape) != expected:
            raise FrontendError(
                f"{program.info.name} returns logits of shape {list(logits.shape)} for {length} "
                f"token(s); expected {list(expected)}, one row per token."
            )


def check_against_eager(program: Program, forward: StatelessForward, least: int) -> None:
    """A trace made for long sequences must still be right for short ones: compare the numbers."""
    with float32_parameters(forward.model, values=True), torch.no_grad():
        for length in (1, 2, least - 1):
            tokens = torch.arange(length) % program.info.vocab_size
            positions = torch.arange(length)
            want = forward(tokens, positions if forward.takes_positions else None)
            got = run_program(program, {"tokens": tokens, "positions": positions})
            try:
                check_close(got, want)
            except PassError as error:
                raise FrontendError(
                    f"{program.info.name} could only be traced for {least} tokens or "
                    f"more, and that trace is wrong for {length}: {error}"
                ) from error


class _Shapes(fx.Interpreter):
    """Runs shapes only, at one concrete length."""

    def __init__(self, program: Program, mode: FakeTensorMode) -> None:
        super().__init__(program.module)
        self._program, self._mode = program, mode

    def run_node(self, n: fx.Node) -> Any:
        try:
            return super().run_node(n)
        except Exception as error:
            lines = [line.strip() for line in (n.stack_trace or "").strip().splitlines()[-2:]]
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise FrontendError(f"{reason.rstrip('.')} ({', '.join(lines)})") from error

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        weight = self._program.weights[target]
        with self._mode:
            return torch.empty(weight.shape, dtype=weight.dtype)
