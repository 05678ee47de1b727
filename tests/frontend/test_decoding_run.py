"""What a run on shapes shows of how a model decodes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from recurrent_models import (
    WIDTH,
    Decoder,
    Dictionary,
    Gated,
    InModules,
    Items,
    Keeper,
    check_capture,
)
from torch import Tensor, nn

from graphwright.frontend.recurrent.decoding_run import BATCH, decoding_run
from graphwright.frontend.recurrent.held_tensors import held_tensors, with_tensors
from graphwright.frontend.recurrent.recurrence import find_recurrence
from graphwright.frontend.stateless import StatelessForward


def test_states_their_readers_and_what_they_start_with() -> None:
    class Started(Gated):
        start = 0.25

    run = decoding_run(StatelessForward(Decoder(Started, keeper=Items)))
    assert run is not None
    paths = [("kept", "kept", index, 0) for index in range(2)]
    assert list(run.states) == paths and run.growing == set()
    assert all(state.shape == (BATCH, WIDTH) for state in run.states.values())
    assert run.initial == dict.fromkeys(paths, 0.25)
    assert run.readers == {path: {f"layers.{path[2]}.mixer"} for path in paths}


def test_states_in_attributes_of_modules() -> None:
    model = Decoder(keeper=InModules)
    run = decoding_run(StatelessForward(model))
    assert run is not None
    assert list(run.states) == [("", f"layers.{i}.mixer", "state", 0) for i in range(2)]
    assert not any(hasattr(layer.mixer, "state") for layer in model.layers), "left in the model"


class Grows(Gated):
    """Keeps all it has seen."""

    def forward(self, x: Tensor, cache: Any = None) -> Any:
        if cache is None:
            return x.cumsum(1)
        old = cache.load(self)
        new = x if old is None else torch.cat([old[0], x], 1)
        cache.save(self, [new])
        return new.cumsum(1)[:, -x.shape[1] :]


class KeepsNumbers(Gated):
    """Keeps nothing that it reads."""

    def forward(self, x: Tensor, cache: Any = None) -> Any:
        if cache is not None:
            cache.save(self, [x[:, -1]])
        return self.out(x)


class WithoutCache(nn.Module):
    def forward(self, input_ids: Tensor) -> Tensor:
        return input_ids[..., None].float()


@pytest.mark.parametrize("mixer", [Grows, KeepsNumbers])
def test_what_grows_or_is_never_read_is_no_state(mixer: Any) -> None:
    assert decoding_run(StatelessForward(Decoder(mixer))) is None


def test_a_model_that_takes_no_cache_has_no_states() -> None:
    assert decoding_run(StatelessForward(WithoutCache())) is None


def test_layers_of_one_kind_find_their_states_by_a_number() -> None:
    model = Decoder(layers=3, keeper=Dictionary)
    recurrence = find_recurrence(StatelessForward(model))
    assert recurrence is not None
    places = {id(vars(layer.mixer)): number for number, layer in enumerate(model.layers)}
    assert recurrence.places() == places


class SharedKeeper(Keeper):
    """One state, which each module takes from the one before it."""

    def load(self, mixer: Any) -> Any:
        return self.kept[0]

    def save(self, mixer: Any, states: Any) -> None:
        self.kept[0] = tuple(states)


class Shares(Decoder):
    """With a cache of its own where it is given none."""

    def mix(self, layer: nn.Module, h: Tensor, cache: Any) -> Any:
        cache = self.own if cache is None else cache
        return layer(h, cache)

    def forward(self, input_ids: Tensor, kept: Any = None, use_cache: bool = False) -> Any:
        self.own = SharedKeeper(1)
        return super().forward(input_ids, kept, use_cache)


def test_a_state_that_two_modules_write_is_never_compiled_wrong() -> None:
    """Both take it in turns, token by token: other than over a whole sequence."""
    from graphwright.ir import FrontendError

    with pytest.raises(FrontendError, match=r"recurrent|token by token|wrong|several"):
        check_capture(Shares(keeper=SharedKeeper))


def test_tensors_are_found_and_put_back_anywhere() -> None:
    class Thing:
        pass

    thing: Any = Thing()
    thing.parts = [{"a": torch.zeros(1)}, (torch.ones(1), "text", None)]
    thing.thing = thing  # itself
    thing.number, thing.call = 3, lambda: None
    paths = [("parts", 0, "a"), ("parts", 1, 0)]
    assert list(held_tensors(thing)) == paths
    thing.again = thing.parts[0]
    new = with_tensors(thing, {paths[0]: torch.full((1,), 5.0)})
    assert float(new.parts[0]["a"]) == 5 and float(thing.parts[0]["a"]) == 0
    assert new.thing is new and new.again is new.parts[0]
    assert new.parts[1][0] is thing.parts[1][0] and new.parts[1][1:] == ("text", None)
