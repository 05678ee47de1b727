"""Modules that rewrite their own buffers by how long the sequence is, settled for one length.

Scaled rotary embeddings may choose their frequencies by the largest position they are called with.
A compiled decoder meets a sequence token by token and keeps the keys that it has rotated, so one
choice must hold for the whole sequence: that of the longest sequence it is compiled for.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from graphwright.frontend.stateless import POSITION_NAMES
from graphwright.ir.errors import FrontendError

__all__ = ["settled_buffers"]

_LOG = logging.getLogger("graphwright.frontend")
_SHORT = 2  # the last position of a sequence that no scaling is meant for
_FAR = 1000  # and, in contexts, of one beyond every threshold


@contextlib.contextmanager
def settled_buffers(model: nn.Module, context: int | None) -> Iterator[dict[str, torch.Tensor]]:
    """While open, such modules of `model` compute as in a sequence of `context` tokens.

    Yields the buffers that are other ones meanwhile, by their names in `model`.

    They are found by what they do: a forward of positions that wraps another one and leaves other
    buffers behind for a long sequence than for a short one. The wrapped forward alone, with the
    buffers of the long sequence, stands in for it. On leaving, `model` is as it was.

    Raises FrontendError when the wrapped forward then gives other values than the wrapper.
    """
    saved: list[tuple[nn.Module, dict[str, Any], dict[str, torch.Tensor | None]]] = []
    settled: dict[str, torch.Tensor] = {}
    try:
        for name, module in model.named_modules():
            positions = _position_argument(module)
            if context is None or positions is None:
                continue
            saved.append((module, dict(module.__dict__), dict(module._buffers)))
            if _settle(name, module, positions, context):
                _LOG.info("'%s' is settled for sequences of %d tokens", name, context)
                prefix = f"{name}." if name else ""
                settled.update({prefix + key: value for key, value in _buffers(module).items()})
            else:
                _restore(*saved.pop())
        yield settled
    finally:
        for entry in reversed(saved):
            _restore(*entry)


def _restore(
    module: nn.Module, attributes: dict[str, Any], buffers: dict[str, torch.Tensor | None]
) -> None:
    module.__dict__.clear()
    module.__dict__.update(attributes)
    module._buffers.clear()
    module._buffers.update(buffers)


def _position_argument(module: nn.Module) -> str | None:
    """What `module`'s forward calls positions, when it wraps another and has buffers to change."""
    forward = type(module).forward
    if not hasattr(forward, "__wrapped__") or not module._buffers:
        return None
    return next((p for p in inspect.signature(forward).parameters if p in POSITION_NAMES), None)


def _settle(name: str, module: nn.Module, positions: str, context: int) -> bool:
    """Leaves the long sequence's buffers in `module`, and its inner forward; False: not needed."""
    calls = _calls(module, positions)

    def run(forward: Any, last: int) -> list[Any]:
        return [forward(**k, **{positions: torch.tensor([[0, last]])}) for k in calls]

    kept = dict(module.__dict__), dict(module._buffers)
    states = []
    with torch.no_grad():
        for last in (_SHORT, context - 1, _FAR * context, context - 1):
            for key, buffer in kept[1].items():
                module._buffers[key] = None if buffer is None else buffer.clone()
            try:
                wanted = run(module, last)
            except Exception as error:  # noqa: BLE001  (a model's own code; the trace will speak)
                _LOG.debug("'%s' cannot be called alone: %s", name, error)
                return False
            states.append(_buffers(module))
            if len(states) < 4:
                _restore(module, *kept)
        if all(_equal(states[0], state) for state in states):
            return False
        inner = inspect.unwrap(type(module).forward).__get__(module)
        found = run(inner, context - 1)
    if not _same(found, wanted):
        raise FrontendError(
            f"'{name}' ({type(module).__name__}) changes its buffers with the length of the "
            f"sequence, and what is left without that change gives other values at position "
            f"{context - 1}."
        )
    module.__dict__["forward"] = inner
    return True


def _calls(module: nn.Module, positions: str) -> list[dict[str, Any]]:
    """Arguments beside the positions with which the forward may be called; [] when unknown."""
    keywords: dict[str, Any] = {}
    kinds: list[dict[str, Any]] = [{}]
    for parameter in inspect.signature(type(module).forward).parameters.values():
        if parameter.name in ("self", positions):
            continue
        if parameter.name == "layer_type":
            named = getattr(module, "layer_types", None) or ()
            kinds = [{"layer_type": kind} for kind in sorted(set(named))] or [{}]
        elif parameter.default is parameter.empty:
            keywords[parameter.name] = torch.zeros(1, 1, 1)
    return [{**keywords, **kind} for kind in kinds] if len(keywords) <= 1 else []


def _buffers(module: nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in module._buffers.items() if value is not None}


def _equal(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


def _same(one: Any, two: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(two, torch.Tensor) and torch.equal(one, two)
    return len(one) == len(two) and all(_same(a, b) for a, b in zip(one, two, strict=True))
