"""Which modules of a model are called with what, and whose code reads which memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from graphwright.frontend.recurrent.held_tensors import Path

__all__ = ["Call", "ModuleCalls", "memory_of"]


@dataclass
class Call:
    """A call of a module: what it was given, and what it returned."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: Any = None


class ModuleCalls(TorchDispatchMode):
    """While open, watches `model`. calls: of each module, by its path. readers: by the path that
    `memory` has for it, the modules whose own code reads that memory."""

    def __init__(self, model: nn.Module, memory: Mapping[int, Path] | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: dict[str, list[Call]] = {}
        self.readers: dict[Path, set[str]] = {}
        self._memory = memory or {}
        self._model = model
        self._open: list[str] = []
        self._running: list[Call] = []
        self._hooks: list[Any] = []

    def __enter__(self) -> ModuleCalls:
        for name, module in self._model.named_modules():
            self._hooks.append(
                module.register_forward_pre_hook(self._begin(name), with_kwargs=True)
            )
            self._hooks.append(module.register_forward_hook(self._end))
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        for hook in self._hooks:
            hook.remove()

    def _begin(self, name: str) -> Any:
        def begin(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._open.append(name)
            self._running.append(Call(args, dict(kwargs)))
            self.calls.setdefault(name, []).append(self._running[-1])

        return begin

    def _end(self, _: nn.Module, args: Any, result: Any) -> None:
        self._open.pop()
        self._running.pop().result = result

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for leaf in pytree.tree_leaves((args, kwargs)):
            path = self._memory.get(memory_of(leaf)) if isinstance(leaf, torch.Tensor) else None
            if path is not None:
                self.readers.setdefault(path, set()).add(self._open[-1] if self._open else "")
        return func(*args, **kwargs)


def memory_of(tensor: torch.Tensor) -> int:
    """The same number for tensors in the same memory."""
    return int(tensor.untyped_storage()._cdata)
