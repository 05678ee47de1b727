"""Declaring an op of the `gw` namespace: schema, reference, meta rule and samples in one place.

The reference is the meaning of the op. It is written in plain torch, accumulates in float32, and is
what every backend is compared with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch

__all__ = ["Op", "Sample", "declare", "get_op", "is_gw_op", "registered_ops"]

_LIBRARY = torch.library.Library("gw", "DEF")
_OPS: dict[str, Op] = {}


@dataclass(frozen=True)
class Sample:
    """One call to test an op with: `args` and `kwargs` hold real tensors."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    name: str = ""


@dataclass(frozen=True)
class Op:
    """A declared op. `overload` is what graph nodes have as target."""

    name: str
    overload: torch._ops.OpOverload
    reference: Callable[..., Any]
    samples: Callable[[], Iterable[Sample]]
    exactness: str

    @property
    def schema(self) -> str:
        """The op's signature as torch prints it."""
        return str(self.overload._schema)


def declare(
    schema: str,
    *,
    meta: Callable[..., Any],
    samples: Callable[[], Iterable[Sample]],
    exactness: str = "reassociating",
) -> Callable[[Callable[..., Any]], Op]:
    """Decorator over the reference function. `schema` is torch's, without the namespace.

    `meta` takes the same arguments and returns empty tensors of the result's shape and dtype;
    `exactness` names the row of the tolerance table a backend must meet.
    """
    name = schema.split("(", 1)[0]

    def register(reference: Callable[..., Any]) -> Op:
        if name in _OPS:
            raise ValueError(f"gw op '{name}' is declared twice.")
        _LIBRARY.define(schema)
        _LIBRARY.impl(name, reference, "CPU")
        _LIBRARY.impl(name, meta, "Meta")
        overload = getattr(torch.ops.gw, name).default
        _OPS[name] = Op(name, overload, reference, samples, exactness)
        return _OPS[name]

    return register


def get_op(name: str) -> Op:
    """The op declared as `name`. Raises KeyError naming the known ones."""
    if name not in _OPS:
        raise KeyError(f"no gw op '{name}'; there are {', '.join(sorted(_OPS))}.")
    return _OPS[name]


def registered_ops() -> tuple[Op, ...]:
    """All declared ops, by name."""
    return tuple(_OPS[name] for name in sorted(_OPS))


def is_gw_op(target: object) -> bool:
    """Is `target`, a node's target, an op of the gw namespace?"""
    return isinstance(target, torch._ops.OpOverload) and target.namespace == "gw"
