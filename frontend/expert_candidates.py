"""Modules that may loop over experts, found by structure: weights in as many parts, a choice."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from functools import cached_property
from operator import attrgetter
from types import CodeType, FunctionType
from typing import Any

import torch
from torch import nn

from graphwright.frontend.expert_loops import ExpertLoop
from graphwright.ir.errors import FrontendError

__all__ = ["ExpertBlock", "find_candidates", "replaced"]

_CHOOSES = {"topk", "argmax", "max", "sort", "argsort", "one_hot", "where", "nonzero", "argwhere"}
_SEARCHES = ({"one_hot", "nonzero"}, {"one_hot", "argwhere"})  # who was chosen
_CONSTANTS = (bool, int, float, str, type(None))


@dataclass
class ExpertBlock:
    """A module that may loop over experts.

    lists: its lists of like modules, one for each expert; stacks: its weights [experts, ...], or
    [experts · rows, ...] that it takes apart itself. counts: how many experts there may be.
    call: what its forward was called with.
    """

    name: str
    module: nn.Module
    lists: list[nn.ModuleList]
    stacks: list[str]
    counts: frozenset[int]
    call: Any = None

    @property
    def count(self) -> int:
        """How many experts there are, once that is known."""
        (count,) = self.counts
        return count

    @cached_property
    def kind(self) -> Hashable:
        """Equal for blocks that do the same with weights of their own."""
        shapes = tuple((k, tuple(p.shape)) for k, p in self.module.named_parameters())
        held = vars(self.module).items()
        constants = tuple((k, type(v), v) for k, v in held if isinstance(v, _CONSTANTS))
        return type(self.module), shapes, constants

    def run(self, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[Any, ExpertLoop]:
        """The result of `forward` with its loop over experts run once, and what the loop met."""
        loop = self._loop()
        with loop:
            result = forward(*args, **kwargs)
        if loop.ids is not None:
            loop.check_complete()
        return result, loop

    def _loop(self) -> ExpertLoop:
        """A mode over the weights the module has now."""
        weights: list[list[torch.Tensor]] = []
        for experts in self.lists:
            held = [dict(expert.named_parameters()) for expert in experts]
            weights.extend([each[name] for each in held] for name in held[0])
        stacks = [attrgetter(name)(self.module) for name in self.stacks]
        return ExpertLoop(self.counts, weights, stacks)

    def refusal(self, reason: str) -> FrontendError:
        """Why the block cannot be traced; reason: the end of a sentence."""
        count = next(iter(self.counts)) if len(self.counts) == 1 else "its"
        return FrontendError(
            f"the loop over {count} experts in '{self.name}' ({type(self.module).__name__}) cannot "
            f"be traced: {reason}."
        )


@contextlib.contextmanager
def replaced(blocks: list[ExpertBlock], run: Callable[..., Any]) -> Iterator[None]:
    """While open, the forward of each block is `run(block, its forward, …)`."""

    def bind(block: ExpertBlock, forward: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **kwargs: run(block, forward, *args, **kwargs)

    try:
        for block in blocks:
            block.module.__dict__["forward"] = bind(block, block.module.forward)
        yield
    finally:
        for block in blocks:
            block.module.__dict__.pop("forward", None)


def find_candidates(model: nn.Module) -> list[ExpertBlock]:
    """Modules of `model` with parts for each of several experts that choose by value, the innermost
    ones that are called."""
    found = []
    for name, module in model.named_modules():
        block = _of_own_parts(name, module) or _of_parts_below(name, module)
        if block is not None and name:
            found.append(block)
    names = [block.name for block in found]
    return [b for b in found if not any(n.startswith(b.name + ".") for n in names)]


def _of_own_parts(name: str, module: nn.Module) -> ExpertBlock | None:
    """A module with a list of like modules, or weights of as many matrices, that chooses."""
    lists = [c for c in module.children() if isinstance(c, nn.ModuleList) and _alike(c)]
    shapes = {key: p.shape for key, p in module.named_parameters(recurse=False) if p.dim() == 3}
    counts = {len(child) for child in lists} or {shape[0] for shape in shapes.values()}
    parts = [part for part in module.children() if not isinstance(part, nn.ModuleList)]
    chooses = any(_names(type(part)) & _CHOOSES for part in (module, *parts))
    if len(counts) != 1 or not chooses or max(counts) < 2:
        return None
    return ExpertBlock(name, module, lists, [] if lists else list(shapes), frozenset(counts))


def _of_parts_below(name: str, module: nn.Module) -> ExpertBlock | None:
    """A module that searches who was chosen, or in which rows are sorted by that, and that holds
    weights which fall into as many parts, how deep ever. How many parts: what the weights, or a
    number that it keeps, say."""
    weights = {k: p.shape for k, p in module.named_parameters() if p.dim() in (2, 3)}
    counts = {shape[0] for shape in weights.values() if len(shape) == 3 and shape[0] > 1}
    own = _names(type(module))
    if any(search <= own for search in _SEARCHES):
        numbers = {v for v in vars(module).values() if type(v) is int and v > 1}
        flat = {shape[0] for shape in weights.values() if len(shape) == 2}
        counts |= {n for n in numbers if any(size % n == 0 and size > n for size in flat)}
    elif not counts or not _sorts(module):
        return None
    if not counts or not _is_called(module):
        return None
    return ExpertBlock(name, module, [], list(weights), frozenset(counts))


def _sorts(module: nn.Module) -> bool:
    """Does the code of `module` and its parts sort rows, and make numbers of values?"""
    names = set().union(*map(_names, {type(part) for part in module.modules()}))
    return bool(names & {"sort", "argsort"}) and bool(names & {"tolist", "numpy"})


def _is_called(module: nn.Module) -> bool:
    """Does the forward of `module` do anything but refuse to be called?"""
    code = inspect.unwrap(type(module).forward).__code__
    return bool(set(code.co_names) - {"NotImplementedError", "type", "__name__"})


def _alike(experts: nn.ModuleList) -> bool:
    """Are all modules of the list of one class, with parameters of the same names and shapes?"""
    kinds = {
        (type(expert), tuple((k, tuple(p.shape)) for k, p in expert.named_parameters()))
        for expert in experts
    }
    return len(kinds) == 1 and len(experts) > 1


def _names(kind: type) -> set[str]:
    """The names that the methods of a class use, inherited ones too."""
    found: set[str] = set()
    for base in kind.__mro__[: kind.__mro__.index(nn.Module)]:
        for function in vars(base).values():
            if isinstance(function, FunctionType):
                stack: list[CodeType] = [inspect.unwrap(function).__code__]
                while stack:
                    code = stack.pop()
                    found.update(code.co_names)
                    stack.extend(c for c in code.co_consts if isinstance(c, CodeType))
    return found
