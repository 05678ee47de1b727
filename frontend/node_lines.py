"""The line of the model that made a node of a trace, found without the other hundred of the stack.

torch looks up and describes every frame that is active, most of them its own, for each op that it
traces: a twentieth of an export.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any
from unittest import mock

from torch.fx import proxy

from graphwright.frontend.source_lines import is_of_the_model

__all__ = ["lines_of_the_model"]


@contextmanager
def lines_of_the_model() -> Iterator[None]:
    """While open, nodes remember the line of the model that made them, not only lines of functions
    called `forward`, which is all that torch keeps."""
    base = proxy.TracerBase
    if not hasattr(base, "_filter_traceback_frames") or not hasattr(proxy, "CapturedTraceback"):
        yield  # another torch, with its own lines
        return
    with (
        mock.patch.object(proxy, "CapturedTraceback", _LinesOfTheModel),
        mock.patch.object(base, "_filter_traceback_frames", lambda tracer, lines: lines),
    ):
        yield


class _LinesOfTheModel:
    """Stands for torch's CapturedTraceback where a node is made."""

    @staticmethod
    def extract(**options: Any) -> _LinesOfTheModel:
        return _LinesOfTheModel()

    def summary(self) -> traceback.StackSummary:
        """The innermost two of the model's frames, the outer one first; none before its forward."""
        inner: list[traceback.FrameSummary] = []
        entered = 0  # of the model's frames, those inside the outermost one called forward
        count = 0
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            code = frame.f_code
            if is_of_the_model(code.co_filename):
                count += 1
                if len(inner) < 2:
                    inner.append(
                        traceback.FrameSummary(code.co_filename, frame.f_lineno, code.co_name)
                    )
                if code.co_name == "forward":
                    entered = count
            frame = frame.f_back
        return traceback.StackSummary.from_list(inner[:entered][::-1])
