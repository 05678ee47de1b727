"""What lanes through a program take: multiplications, and memory."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import fx

from graphwright.ir.interpreter import Step

__all__ = ["bytes_per_token", "work_behind"]


def work_behind(steps: Sequence[Step]) -> list[int]:
    """Multiplications by weights that a token takes from each place on, and 0 behind the last."""
    behind = [0]
    for step in reversed(steps):
        own = 0
        if step.op == "call_function":
            for node in step.node.all_input_nodes:
                shape = getattr(node.meta.get("val"), "shape", ())
                if node.op == "get_attr" and len(shape) >= 2:
                    own = max(own, math.prod(map(int, shape)))
        behind.append(behind[-1] + own)
    return behind[::-1]


def bytes_per_token(steps: Sequence[Step]) -> int:
    """That a lane holds at most, by what the values of one token take."""
    live: dict[fx.Node, int] = {}
    most = 0
    for step in steps:
        if step.op != "get_attr":
            live[step.node] = _row_bytes(step.node)
        most = max(most, sum(live.values()))
        for node in step.dying:
            live.pop(node, None)
    return most


def _row_bytes(node: fx.Node) -> int:
    """Of a tensor with one symbolic size what one of these takes; 0 for anything else."""
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor) or node.op == "placeholder":
        return 0
    sizes = [1 if isinstance(size, torch.SymInt) else int(size) for size in value.shape]
    return math.prod(sizes) * value.dtype.itemsize
