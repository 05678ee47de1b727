"""Limits that the code for a sequence puts on a value, and the code for a token forgot.

A state space's time step may be limited where a whole sequence is computed, and not where a token
is. The model is what it gives for a sequence, so the limit belongs into the step too. It is found
by value: the same module runs both ways on random inputs, and where the code for a token computes
what the other one limits, for every token, its result is limited.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

__all__ = ["LIMITED_TOKENS", "Limit", "Limited", "missing_limits"]

LIMITED_TOKENS = 11
"""Of the sequence that both ways run: no likely other size."""
Run = Callable[[], Any]
_Bounds = tuple[float, float]
_CLAMPS = frozenset(
    {
        torch.clamp, torch.Tensor.clamp, torch.clip, torch.Tensor.clip, torch.clamp_min,
        torch.Tensor.clamp_min, torch.clamp_max, torch.Tensor.clamp_max,
    }
)  # fmt: skip
_NOT_NEGATIVE = frozenset(
    {
        nn.functional.softplus, nn.functional.relu, torch.relu, torch.sigmoid, torch.exp,
        torch.Tensor.sigmoid, torch.Tensor.exp, torch.Tensor.relu,
    }
)  # fmt: skip


@dataclass(frozen=True)
class Limit:
    """The result of the call number `place` of `function` is limited to `bounds`."""

    function: Any
    place: int
    bounds: _Bounds


class Limited(TorchFunctionMode):
    """While open, results are limited as `limits` say; calls are counted from where it opens."""

    def __init__(self, limits: Sequence[Limit]) -> None:
        super().__init__()
        self._limits = limits
        self._calls: Counter[Any] = Counter()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for limit in self._limits:
            if limit.function == func and limit.place == self._calls[func]:
                result = _clamped(result, limit.bounds)
        self._calls[func] += 1
        return result


def missing_limits(
    module: nn.Module, sequence: Run, steps: Callable[[], Iterator[Any]]
) -> tuple[Limit, ...]:
    """What `sequence` limits and `steps` computes, too, but does not limit.

    Both run `module`, whose parameters are random meanwhile: at once, and for each of
    LIMITED_TOKENS tokens.
    """
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad(), _Recorder() as seen:
        sequence()
    if not seen.limited:
        return ()
    with torch.no_grad(), _random_parameters(module):
        with _Recorder() as whole:
            sequence()
        single = []
        run = steps()
        for _ in range(LIMITED_TOKENS):
            with _Recorder() as token:
                next(run)
            single.append(token)
    found = [_limit(value, bounds, single) for value, bounds in whole.limited]
    return tuple(dict.fromkeys(limit for limit in found if limit is not None))


class _Recorder(TorchFunctionMode):
    """results: of each call, by its function and its number among the calls of that, in order.
    limited: what is limited, and to what, as far as that may change it."""

    def __init__(self) -> None:
        super().__init__()
        self.results: dict[tuple[Any, int], torch.Tensor] = {}
        self._made: dict[int, tuple[torch.Tensor, Any]] = {}
        self.limited: list[tuple[torch.Tensor, _Bounds]] = []
        self._calls: Counter[Any] = Counter()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _CLAMPS:
            bounds = _bounds(func, args, kwargs)
            if bounds is not None and self._may_change(args[0], bounds):
                self.limited.append((args[0].detach().clone(), bounds))
        result = func(*args, **kwargs)
        if isinstance(result, torch.Tensor) and result.is_floating_point():
            self._made[id(result)] = result, func  # the tensor is kept: its id must stay its own
            self.results[func, self._calls[func]] = result.detach().clone()  # before it is written
        self._calls[func] += 1
        return result

    def _may_change(self, value: torch.Tensor, bounds: _Bounds) -> bool:
        _, made = self._made.get(id(value), (None, None))
        return bounds[1] != math.inf or bounds[0] > 0 or made not in _NOT_NEGATIVE


def _bounds(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Bounds | None:
    """The least and the most that a call lets through; None unless both are numbers."""
    names = ("max",) if func in (torch.clamp_max, torch.Tensor.clamp_max) else ("min", "max")
    given = {**dict(zip(names, args[1:], strict=False)), **kwargs}
    least, most = given.get("min"), given.get("max")
    least, most = -math.inf if least is None else least, math.inf if most is None else most
    if not all(isinstance(each, (int, float)) for each in (least, most)):
        return None
    return float(least), float(most)


def _clamped(value: torch.Tensor, bounds: _Bounds) -> torch.Tensor:
    least, most = (None if math.isinf(each) else each for each in bounds)
    return value if least is most is None else torch.clamp(value, least, most)


def _limit(value: torch.Tensor, bounds: _Bounds, steps: Sequence[_Recorder]) -> Limit | None:
    """Where the steps compute `value` [..., LIMITED_TOKENS, ...] without limiting it."""
    axes = [axis for axis, size in enumerate(value.shape) if size == LIMITED_TOKENS]
    if len(axes) != 1:
        return None
    wanted = [each.unique() for each in value.unbind(axes[0])]
    if all(
        any(_same(wanted[t], own) and limits == bounds for own, limits in step.limited)
        for t, step in enumerate(steps)
    ):
        return None
    for call in steps[0].results:
        values = [step.results.get(call) for step in steps]
        if all(
            own is not None and _same(want, own) for want, own in zip(wanted, values, strict=True)
        ):
            return Limit(*call, bounds)
    return None


def _same(wanted: torch.Tensor, value: torch.Tensor) -> bool:
    """Has `value` the elements `wanted`, in ascending order, however often and wherever?"""
    own = value.unique()
    if own.shape != wanted.shape:
        return False
    return torch.allclose(own, wanted.to(own.dtype), 1e-4, 1e-6)


@contextmanager
def _random_parameters(module: nn.Module) -> Iterator[None]:
    random = torch.Generator().manual_seed(0)
    saved = [(part, dict(part._parameters)) for part in module.modules()]
    try:
        for part, own in saved:
            for name, old in own.items():
                if old is not None:
                    spread = old.shape[-1] ** -0.5 if old.dim() > 1 else 1.0
                    values = torch.randn(old.shape, generator=random) * spread
                    part._parameters[name] = nn.Parameter(values, requires_grad=False)
        yield
    finally:
        for part, own in saved:
            part._parameters.clear()
            part._parameters.update(own)
