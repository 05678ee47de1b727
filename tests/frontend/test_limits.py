"""Limits that only the code for a sequence has are put into the step, where the values agree."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from recurrent_models import Decoder, Mixer, check_capture, steps_of
from torch import Tensor, nn
from torch.nn import functional as F

from graphwright.frontend import capture_module
from graphwright.ir import FrontendError


class Forgets(Mixer):
    """s = exp(-d) s + d x with d = softplus(gate(x)), limited where a sequence is computed. A token
    after others has code of its own."""

    limit: Callable[[Tensor], Tensor] = staticmethod(lambda d: torch.clamp(d, 0.6, float("inf")))
    step_limit: Callable[[Tensor], Tensor] = staticmethod(lambda d: d)

    def time(self, x: Tensor) -> Tensor:
        return F.softplus(self.gate(x))

    def forward(self, x: Tensor, cache: Any = None) -> Any:
        states = cache.load(self) if cache is not None else None
        if states is not None and x.shape[1] == 1:
            token = x[:, 0]
            return self.sequence(x, type(self).step_limit(self.time(token))[:, None], states, cache)
        return self.sequence(
            x, type(self).limit(F.softplus(self.gate(x))), self.initial(x.shape[0]), cache
        )

    def sequence(self, x: Tensor, d: Tensor, states: Sequence[Tensor], cache: Any) -> Tensor:
        (state,) = states
        results = []
        for token in range(x.shape[1]):
            state = torch.exp(-d[:, token]) * state + d[:, token] * x[:, token]
            results.append(self.out(state))
        if cache is not None:
            cache.save(self, [state])
        return torch.stack(results, 1)


class FromBelow(Forgets):
    limit = staticmethod(lambda d: d.clamp_min(0.6))


class FromAbove(Forgets):
    limit = staticmethod(lambda d: torch.clamp_max(d, 0.6))


class Both(Forgets):
    limit = staticmethod(lambda d: d.clip(min=0.5, max=0.8))


class OnOtherSizes(Forgets):
    """Where a token is computed the same values lie otherwise, and more than once."""

    def time(self, x: Tensor) -> Tensor:
        return F.softplus(self.gate(x)[:, None].expand(-1, 4, -1)).mean(1)


@pytest.mark.parametrize("mixer", [Forgets, FromBelow, FromAbove, Both, OnOtherSizes])
def test_a_limit_that_a_token_lacks_is_put_in(mixer: type[Mixer]) -> None:
    model = Decoder(mixer)
    program = check_capture(model)
    assert len(steps_of(program)) == 2
    clamps = [n for n in program.graph.nodes if "clamp" in str(n.target)]
    assert len(clamps) == 2


class NoLimit(Forgets):
    """What softplus gives is never negative."""

    limit = staticmethod(lambda d: torch.clamp(d, 0.0, float("inf")))


class BothHaveIt(Forgets):
    step_limit = staticmethod(lambda d: torch.clamp(d, 0.6))


@pytest.mark.parametrize(("mixer", "count"), [(NoLimit, 0), (BothHaveIt, 2)])
def test_nothing_is_put_in_where_nothing_lacks(mixer: type[Mixer], count: int) -> None:
    program = check_capture(Decoder(mixer))
    clamps = [n for n in program.graph.nodes if "clamp" in str(n.target)]
    assert len(clamps) == count


class AnotherLimit(Forgets):
    """Limits a token, too, but higher."""

    step_limit = staticmethod(lambda d: torch.clamp(d, 0.9))


class OfAnotherValue(Forgets):
    """The code for a token never computes what the other one limits."""

    limit = staticmethod(lambda d: torch.clamp(2.5 * d, 1.5) / 2.5)


class ByATensor(Forgets):
    limit = staticmethod(lambda d: torch.clamp(d, torch.full_like(d, 0.6)))


@pytest.mark.parametrize("mixer", [AnotherLimit, OfAnotherValue, ByATensor])
def test_near_misses_are_refused(mixer: type[Mixer]) -> None:
    with pytest.raises(FrontendError, match=f"{mixer.__name__}.* gives other values token by tok"):
        capture_module(Decoder(mixer), max_context=64)


def test_the_model_is_left_as_it_was() -> None:
    model: nn.Module = Decoder(Forgets)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    parameters = dict(model.named_parameters())
    capture_module(model, max_context=64)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(value is parameters[name] for name, value in model.named_parameters())
