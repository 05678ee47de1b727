"""One part of a graph at run time: tensors in, rows through native code, tensors out."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from graphwright.frontend.row_parts.find import RowPart
from graphwright.frontend.row_parts.forms import (
    Form,
)
from graphwright.torch_backend.packed_weights import PackedWeights, packed
from graphwright.torch_backend.part_code import DECODE_ROWS, PartCode
from graphwright.torch_backend.part_frame import PartFrame, PartLayout
from graphwright.torch_backend.part_pool import PartPool
from graphwright.torch_backend.quiet_torch import QuietTorch

__all__ = ["part_call"]

_LOG = logging.getLogger("graphwright.torch_backend")
_MOST_PACKINGS = 8  # of a part's weights
_KEPT_FRAMES = 16


def part_call(
    part: RowPart, forms: dict[fx.Node, Form], code: PartCode, pool: PartPool, quiet: QuietTorch,
    by_torch: Callable[..., tuple[torch.Tensor, ...]], most_rows: int | None = None,
) -> Callable[..., tuple[torch.Tensor, ...]]:  # fmt: skip
    """A PartCall's `run`.

    by_torch: the same as torch runs it, for more rows than `most_rows`, and for weights that change
    so often that packing them takes longer.
    Raises NoFormError where the shape of an output cannot be told from the arguments.
    """
    layout = PartLayout(part, forms)
    inputs, numbers = len(layout.inputs), layout.numbers
    most = float("inf") if most_rows is None else most_rows * layout.inputs[0].width
    frames: dict[Any, PartFrame] = {}
    lock = threading.Lock()
    weights: PackedWeights | None = None
    packings = 0

    def frame_of(given: tuple[Any, ...]) -> PartFrame:
        """Small ones are kept: to make one takes as long as to run it."""
        key = tuple(each.shape for each in given[:inputs]), given[len(given) - numbers :]
        frame = frames.get(key)
        if frame is None:
            frame = PartFrame(layout, given)
            if frame.rows <= DECODE_ROWS:
                if len(frames) == _KEPT_FRAMES:
                    frames.clear()
                frames[key] = frame
        return frame

    def run(*given: Any) -> tuple[torch.Tensor, ...]:
        nonlocal weights, packings
        if packings > _MOST_PACKINGS or given[0].numel() > most:
            return by_torch(*given)
        tensors = given[inputs : len(given) - numbers]
        with lock:
            if weights is None or not weights.fit(tensors):
                weights, packings = packed(code, tensors), packings + 1
                if packings > _MOST_PACKINGS:
                    _LOG.warning("weights changed %d times; torch computes with them now", packings)
            frame = frame_of(given)
            if frame.rows <= DECODE_ROWS:
                quiet.hush()
            rows, result = frame.gather(given[:inputs]), frame.result()
            pool.run(code, weights.address, frame.rows, rows.data_ptr(), result.data_ptr())
            return frame.outputs(result)

    return run
