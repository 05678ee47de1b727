"""The forward that capture traces: tokens of one sequence in, logits out, no cache, all float32."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from graphwright.frontend.recorded_tensors import loaded
from graphwright.ir.errors import FrontendError

__all__ = ["POSITION_NAMES", "StatelessForward", "float32_parameters"]

_TOKENS = ("input_ids", "tokens", "idx", "x")
POSITION_NAMES = ("position_ids", "positions", "pos_ids", "input_pos")


class StatelessForward(nn.Module):
    """Wraps `model` as `(tokens int64 [T], positions int64 [T]) -> logits [T, vocab]`.

    What the model's own forward accepts is read from its signature: positions or none,
    `use_cache` or none. Positions that it can do without are not given to it: what it computes by
    itself is what it means (some count from 2, or skip padding). It may return the logits, a tuple
    that starts with them, a mapping with "logits" or an object with `.logits`.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        parameters = inspect.signature(model.forward).parameters
        self._tokens = next((name for name in _TOKENS if name in parameters), None)
        self._positions = next((name for name in POSITION_NAMES if name in parameters), None)
        optional = [p.name for p in parameters.values() if p.default is not p.empty]
        self._given = self._positions is not None and self._positions not in optional
        self._switches = {
            name: value
            for name, value in (("use_cache", False), ("return_dict", True))
            if name in parameters or (name == "use_cache" and _hands_on(parameters))
        }
        positional = [p for p in parameters.values() if p.kind not in (p.KEYWORD_ONLY,)]
        if self._tokens is None and not positional:
            raise FrontendError(
                f"{type(model).__name__}.forward takes no argument that could be the tokens; "
                f"expected forward(input_ids, position_ids=None)."
            )

    @property
    def takes_positions(self) -> bool:
        """Are positions given to the model?"""
        return self._given

    @property
    def has_cache(self) -> bool:
        """Can the model be asked to keep a cache?"""
        return "use_cache" in self._switches

    def call_model(self, tokens: torch.Tensor, **given: Any) -> Any:
        """What the model returns for tokens [B, T]. given: its own arguments beside them."""
        keywords = {**self._switches, **given}
        if self._tokens is not None:
            return self.model(**{self._tokens: tokens}, **keywords)
        return self.model(tokens, **keywords)

    def give_positions(self) -> bool:
        """From now on they are. False when the model does not take them, or got them before."""
        changed = self._positions is not None and not self._given
        self._given = self._positions is not None
        return changed

    def drop_positions(self) -> None:
        """From now on the model counts positions by itself, where it can."""
        self._given = False

    @contextlib.contextmanager
    def own_positions(self) -> Iterator[None]:
        """While open, the model counts positions by itself."""
        given, self._given = self._given, False
        try:
            yield
        finally:
            self._given = given

    def forward(self, tokens: torch.Tensor, positions: torch.Tensor | None = None) -> torch.Tensor:
        """Logits [T, vocab], float32."""
        keywords: dict[str, Any] = {}
        if self._given and self._positions is not None and positions is not None:
            torch._check(positions.shape[0] == tokens.shape[0])
            keywords[self._positions] = positions.unsqueeze(0)
        result = self.call_model(tokens.unsqueeze(0), **keywords)
        logits = _logits(result, self.model)
        if logits.dim() != 3 or logits.shape[0] != 1:
            raise FrontendError(
                f"{type(self.model).__name__}.forward must return logits of shape "
                f"[1, tokens, vocabulary], not {_sizes(logits)}."
            )
        return logits.squeeze(0).to(torch.float32)


def _hands_on(parameters: Mapping[str, inspect.Parameter]) -> bool:
    """Does a forward with a cache take its switch among the arguments that it hands on?"""
    kinds = {parameter.kind for parameter in parameters.values()}
    return "past_key_values" in parameters and inspect.Parameter.VAR_KEYWORD in kinds


def _logits(result: Any, model: nn.Module) -> torch.Tensor:
    if isinstance(result, torch.Tensor):
        return result
    found = getattr(result, "logits", None)
    if found is None and isinstance(result, dict):
        found = result.get("logits")
    if found is None and isinstance(result, (tuple, list)) and result:
        found = result[0]
    if not isinstance(found, torch.Tensor):
        raise FrontendError(
            f"{type(model).__name__}.forward returned {type(result).__name__}, which holds no "
            f"logits: expected a tensor, a tuple that starts with it, or an object with '.logits'."
        )
    return found


def _sizes(tensor: torch.Tensor) -> str:
    return "[" + ", ".join(str(size) for size in tensor.shape) + "]"


@contextlib.contextmanager
def float32_parameters(model: nn.Module, *, values: bool = False) -> Iterator[None]:
    """While open, `model` is in eval mode and every floating tensor of it is float32.

    Parameters become memory that nobody touches (so nothing is read or resident), unless `values`
    asks for their float32 copies. Buffers keep their values. Ties stay ties, and on leaving, the
    module is as it was.
    """
    modes = [(module, module.training) for module in model.modules()]
    saved: list[tuple[dict[str, Any], str, torch.Tensor]] = []
    replaced: dict[int, torch.Tensor] = {}
    try:
        for module in model.modules():
            stores: list[tuple[dict[str, Any], bool]] = [
                (module._parameters, False),
                (module._buffers, True),
            ]
            for store, is_buffer in stores:
                for name, tensor in list(store.items()):
                    if tensor is None:
                        continue
                    if id(tensor) not in replaced:
                        replaced[id(tensor)] = _stand_in(tensor, values or is_buffer)
                    saved.append((store, name, tensor))
                    store[name] = replaced[id(tensor)]
        model.eval()
        yield
    finally:
        for store, name, tensor in saved:
            store[name] = tensor
        for module, training in modes:
            module.training = training


def _stand_in(tensor: torch.Tensor, keep_values: bool) -> torch.Tensor:
    dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
    if keep_values:
        new = loaded(tensor.detach()).to(device="cpu", dtype=dtype)
    else:
        new = torch.empty(tensor.shape, dtype=dtype)
    return nn.Parameter(new, requires_grad=False) if isinstance(tensor, nn.Parameter) else new
