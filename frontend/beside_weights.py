"""LoRA adapters that stay beside the weights, so that each request chooses one or none."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from graphwright.frontend.capture import Source
from graphwright.frontend.checkpoint_files import checkpoint_name
from graphwright.frontend.lora import LoraAdapter, adapter_hash
from graphwright.ir.adapters import AdaptedWeight, Adapter, LowRank
from graphwright.ir.errors import FrontendError
from graphwright.ir.weights import Weight

__all__ = ["beside_weights"]


def beside_weights(
    model: nn.Module, source: Source, adapters: Mapping[str, Path], *, has_values: bool = True
) -> tuple[Source, tuple[Adapter, ...]]:
    """`source` with an AdaptedWeight for each parameter of `model` that any of the `adapters`,
    directories by name, changes; and what there is to say of them, in order. has_values: as for
    `capture_with_weights`. Raises FrontendError.
    """
    changes: list[dict[str, LowRank]] = []
    turned: dict[str, bool] = {}
    told = []
    for name, directory in adapters.items():
        found = LoraAdapter(directory).low_rank(model, source if has_values else None)
        if not found:
            raise FrontendError(f"the adapter {directory} changes no weight.")
        for weight, (_, other) in found.items():
            if turned.setdefault(weight, other) != other:
                raise FrontendError(
                    f"the adapter {directory} takes '{weight}' as stored the other way round than "
                    "the adapters before it ('fan_in_fan_out'): one of them is for another model."
                )
        changes.append({weight: change for weight, (change, _) in found.items()})
        ranks = [change.rank for change in changes[-1].values()]
        told.append(
            Adapter(
                name, checkpoint_name(directory), adapter_hash(directory), len(ranks),
                (min(ranks), max(ranks)),
            )
        )  # fmt: skip
    adapted: dict[int, tuple[tuple[LowRank | None, ...], bool]] = {}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for weight, is_turned in turned.items():
        own = tuple(each.get(weight) for each in changes)
        adapted[id(parameters[weight])] = (own, is_turned)

    def adapted_source(origin: str, tensor: torch.Tensor) -> Weight:
        base = source(origin, tensor)
        if id(tensor) not in adapted:
            return base
        return AdaptedWeight(base.shape, base.dtype, base, *adapted[id(tensor)])

    return adapted_source, tuple(told)
