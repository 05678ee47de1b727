"""How a model decodes by itself: what it carries from a prompt to the next token, and who reads it.

The forward runs on tensors without values, for a prompt and for one token after it. What it carries
is in objects that it returns under the name of one of its own arguments, as `past_key_values`, or
in attributes of its modules. A tensor among these that has the same size after the token as before
is a state; what grows is the keys and values of attention.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from graphwright.frontend.recurrent.held_tensors import Path, held_tensors
from graphwright.frontend.recurrent.initial_values import InitialValues
from graphwright.frontend.recurrent.module_calls import Call, ModuleCalls, memory_of
from graphwright.frontend.stateless import StatelessForward
from graphwright.frontend.unchanged import unchanged

__all__ = ["BATCH", "LENGTH", "DecodingRun", "decoding_run"]

_LOG = logging.getLogger("graphwright.frontend")
BATCH, LENGTH = 3, 7  # sizes that are told from others by their place: of the prompt's tokens
_CACHE = "past_key_values"


@dataclass
class DecodingRun:
    """What two runs have shown.

    caches: by the argument's name, what the prompt left behind. attributes: by (module, attribute),
    the same for states in modules. states: by (argument, path in it)
    or ("", module, attribute, path): the tensors of constant size, as the prompt left them.
    initial: what every element of a state is before the first token.
    readers: by the same, the modules in whose own code ops read the state. growing: modules whose
    own code reads something else that was kept. prompt, token, sequence: by module, its calls for
    a prompt, for the token after it, and for a sequence without a cache.
    """

    caches: dict[str, Any]
    attributes: dict[tuple[str, str], Any]
    states: dict[Path, torch.Tensor]
    initial: dict[Path, float]
    readers: dict[Path, set[str]]
    growing: set[str]
    prompt: dict[str, list[Call]]
    token: dict[str, list[Call]]
    sequence: dict[str, list[Call]]


def decoding_run(forward: StatelessForward) -> DecodingRun | None:
    """How the model of `forward` decodes; None when it has no states of constant size, or does not
    run on tensors without values."""
    if not forward.has_cache:
        return None
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    try:
        with torch.no_grad(), mode, unchanged(forward.model):
            return _run(forward)
    except Exception as error:  # noqa: BLE001  (a model's own code, on tensors without values)
        _LOG.info("it is not known how the model decodes: %s", error)
        return None


def _run(forward: StatelessForward) -> DecodingRun | None:
    model = forward.model
    short = {path: tensor.shape for path, tensor in _after_prompt(forward, 1)[1].items()}
    with InitialValues() as values:
        caches, left, prompt = _after_prompt(forward, LENGTH)
    sizes = {path: tensor.shape for path, tensor in left.items()}
    with ModuleCalls(model, {memory_of(tensor): path for path, tensor in left.items()}) as watch:
        after = forward.call_model(_tokens(1), use_cache=True, **caches)
    token = watch.calls
    now = _held(caches | _returned(after, forward)) | _attributes(model)
    states = {
        path: tensor for path, tensor in left.items()
        if path in watch.readers and path in now and tensor.is_floating_point()
        and short.get(path) == now[path].shape == sizes[path] and sizes[path][:1] == (BATCH,)
    }  # fmt: skip
    if not states:
        return None
    growing = {name for path, names in watch.readers.items() for name in names
               if path not in states and short.get(path) != sizes[path]}  # fmt: skip
    initial = {path: values.of(tensor) for path, tensor in states.items()}
    readers = {path: watch.readers[path] for path in states}
    with ModuleCalls(model) as watch:
        forward.call_model(_tokens(LENGTH))
    holders = {path[1:3] for path in states if path[0] == ""}
    attributes = {(name, kept): vars(model.get_submodule(name))[kept] for name, kept in holders}
    return DecodingRun(
        caches, attributes, states, initial, readers, growing, prompt, token, watch.calls
    )


def _tokens(length: int) -> torch.Tensor:
    return torch.zeros(BATCH, length, dtype=torch.int64)


def _after_prompt(
    forward: StatelessForward, length: int
) -> tuple[dict[str, Any], dict[Path, torch.Tensor], dict[str, list[Call]]]:
    """The caches after a prompt, every tensor that was kept of it, and the modules' calls."""
    model = forward.model
    before = _attributes(model)
    with ModuleCalls(model) as watch:
        caches = _returned(forward.call_model(_tokens(length), use_cache=True), forward)
    if not caches and _CACHE in inspect.signature(model.forward).parameters:
        given = {_CACHE: _new_cache(model)}
        with ModuleCalls(model) as watch:
            result = forward.call_model(_tokens(length), use_cache=True, **given)
        caches = given | _returned(result, forward)
    kept = {path: tensor for path, tensor in _attributes(model).items()
            if path not in before or before[path] is not tensor}  # fmt: skip
    return caches, _held(caches) | kept, watch.calls


def _held(caches: Mapping[str, Any]) -> dict[Path, torch.Tensor]:
    return {
        (name, *path): tensor
        for name, cache in caches.items()
        for path, tensor in held_tensors(cache).items()
    }


def _returned(result: Any, forward: StatelessForward) -> dict[str, Any]:
    """What a model returns under the name of one of its arguments."""
    parameters = inspect.signature(forward.model.forward).parameters
    if not isinstance(result, dict):
        return {}
    return {name: value for name, value in result.items()
            if name in parameters and held_tensors(value)}  # fmt: skip


def _new_cache(model: nn.Module) -> Any:
    """An empty cache of transformers' own: some of their models take one and do not return it."""
    from transformers import DynamicCache

    return DynamicCache(config=model.config)


def _attributes(model: nn.Module) -> dict[Path, torch.Tensor]:
    """Tensors in plain attributes of modules, which are no parameters or buffers."""
    found: dict[Path, torch.Tensor] = {}
    for name, module in model.named_modules():
        for attribute, value in vars(module).items():
            if not attribute.startswith("_"):
                for path, tensor in held_tensors(value).items():
                    found["", name, attribute, *path] = tensor
    return found
