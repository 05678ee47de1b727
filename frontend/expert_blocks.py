"""Blocks that loop over experts: found by structure, replaced while tracing, once proven equal."""

from __future__ import annotations

import contextlib
import inspect
import logging
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from functools import cached_property
from types import CodeType, FunctionType
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree

from graphwright.frontend.expert_loops import CannotRouteError, ExpertLoop
from graphwright.ir.errors import FrontendError, PassError
from graphwright.ir.tolerance import check_close

__all__ = ["routed_blocks"]

_LOG = logging.getLogger("graphwright.frontend")
_CHOOSES = {"topk", "argmax", "max", "sort", "argsort", "one_hot", "where", "nonzero", "argwhere"}
_TOKENS = 41  # of the run that shows what each block is called with: no likely other size
_CONSTANTS = (bool, int, float, str, type(None))
_TRIED_TOKENS = (41, 164, 656)  # a proof needs every expert to be hit


@dataclass
class _Block:
    """A module that may loop over `count` experts; call: what its forward was called with."""

    name: str
    module: nn.Module
    lists: list[nn.ModuleList]
    stacks: list[str]
    count: int
    call: Any = None

    @cached_property
    def kind(self) -> Hashable:
        """Equal for blocks that do the same with weights of their own."""
        shapes = tuple((k, tuple(p.shape)) for k, p in self.module.named_parameters())
        held = vars(self.module).items()
        constants = tuple((k, type(v), v) for k, v in held if isinstance(v, _CONSTANTS))
        return type(self.module), shapes, constants

    def loop(self) -> ExpertLoop:
        """A mode over the weights the module has now."""
        weights: list[list[torch.Tensor]] = []
        for experts in self.lists:
            held = [dict(expert.named_parameters()) for expert in experts]
            weights.extend([each[name] for each in held] for name in held[0])
        stacks = [getattr(self.module, name) for name in self.stacks]
        return ExpertLoop(self.count, weights, stacks)

    def run(self, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[Any, ExpertLoop]:
        """The result of `forward` with its loop over experts run once, and what the loop met."""
        loop = self.loop()
        with loop:
            result = forward(*args, **kwargs)
        if loop.ids is not None:
            loop.check_complete()
        return result, loop


@contextlib.contextmanager
def routed_blocks(model: nn.Module, run: Callable[[torch.Tensor], Any]) -> Iterator[None]:
    """While open, each block of `model` that loops over experts runs its loop once, for all slots.

    run: calls the model on tokens [T]. Whether a block is such a loop, and computes the same when
    run so, is found out by running it with random weights and inputs that reach every expert.
    Raises FrontendError for a loop over experts that is of another kind.
    """
    blocks = _candidates(model)
    if blocks:
        blocks = _loops(blocks, run)
        for block in {b.kind: b for b in reversed(blocks) if b.call is not None}.values():
            _prove(block)
            _LOG.info("%s: its loop over %d experts is run once", block.name, block.count)
    with _replaced(blocks, lambda block, forward, *args, **kw: block.run(forward, *args, **kw)[0]):
        yield


def _candidates(model: nn.Module) -> list[_Block]:
    """Modules with a list of like modules, or weights of as many matrices, that choose."""
    found = []
    for name, module in model.named_modules():
        lists = [
            child
            for child in module.children()
            if isinstance(child, nn.ModuleList) and _alike(child)
        ]
        shapes = {key: p.shape for key, p in module.named_parameters(recurse=False) if p.dim() == 3}
        counts = {len(child) for child in lists} or {shape[0] for shape in shapes.values()}
        if len(counts) == 1 and _chooses(module):
            stacks = [] if lists else list(shapes)
            block = _Block(name, module, lists, stacks, counts.pop())
            if block.count > 1:
                found.append(block)
    names = [block.name for block in found]
    return [
        b for b in found if not any(n.startswith(b.name + ".") for n in names if b.name) and b.name
    ]


def _alike(experts: nn.ModuleList) -> bool:
    """Are all modules of the list of one class, with parameters of the same names and shapes?"""
    kinds = {
        (type(expert), tuple((k, tuple(p.shape)) for k, p in expert.named_parameters()))
        for expert in experts
    }
    return len(kinds) == 1 and len(experts) > 1


def _chooses(module: nn.Module) -> bool:
    """Does the code of `module`, or of a part of it that is no expert, choose by value?"""
    parts = [part for part in module.children() if not isinstance(part, nn.ModuleList)]
    return any(_names(type(part)) & _CHOOSES for part in (module, *parts))


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


class _EnoughError(Exception):
    """A block of each kind has been seen."""


def _loops(blocks: list[_Block], run: Callable[[torch.Tensor], Any]) -> list[_Block]:
    """Those of `blocks` that loop over their experts; one of each kind with what it is called with.

    A loop that is missed here cannot be traced: it is refused, and not compiled wrong.
    """
    kinds = {block.kind for block in blocks}
    is_loop: dict[Hashable, bool] = {}

    def watched(block: _Block, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if block.kind not in is_loop:
            block.call = (args, kwargs)
        try:
            result, loop = block.run(forward, *args, **kwargs)
        except CannotRouteError as reason:
            raise _refusal(block, str(reason)) from reason
        is_loop[block.kind] = is_loop.get(block.kind, False) or loop.ids is not None
        if is_loop.keys() == kinds:
            raise _EnoughError
        return result

    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with _replaced(blocks, watched), mode, torch.no_grad():
        try:
            run(torch.zeros(_TOKENS, dtype=torch.int64))
        except _EnoughError:
            _LOG.debug("a block of each kind was seen")
        except FrontendError:
            raise
        except Exception as error:  # noqa: BLE001  (whatever the model raises; tracing will say)
            _LOG.info("the run that looks for loops over experts failed: %s", error)
            return []
    return [block for block in blocks if is_loop.get(block.kind)]


@contextlib.contextmanager
def _replaced(blocks: list[_Block], run: Callable[..., Any]) -> Iterator[None]:
    """While open, the forward of each block is `run(block, its forward, …)`."""

    def bind(block: _Block, forward: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **kwargs: run(block, forward, *args, **kwargs)

    try:
        for block in blocks:
            block.module.__dict__["forward"] = bind(block, block.module.forward)
        yield
    finally:
        for block in blocks:
            block.module.__dict__.pop("forward", None)


def _refusal(block: _Block, reason: str) -> FrontendError:
    return FrontendError(
        f"the loop over {block.count} experts in '{block.name}' ({type(block.module).__name__}) "
        f"cannot be traced: {reason}."
    )


def _prove(block: _Block) -> None:
    """Raises FrontendError unless the block gives the same with its loop run once.

    Random weights and inputs; as many tokens as it takes to reach every expert.
    """
    for seed, tokens in enumerate(_TRIED_TOKENS):
        ids = _compare_runs(block, tokens, torch.Generator().manual_seed(seed))
        if len(ids.unique()) == block.count:
            return
    raise _refusal(block, f"{_TRIED_TOKENS[-1]} random tokens do not reach every expert")


def _compare_runs(block: _Block, tokens: int, generator: torch.Generator) -> torch.Tensor:
    """Runs the block as it is and with its loop run once; returns the experts of each token."""
    state = {name: _weights(p, generator) for name, p in block.module.named_parameters()}
    args, kwargs = pytree.tree_map_only(
        torch.Tensor, lambda t: _inputs(t, tokens, block.count, generator), block.call
    )
    loops: list[ExpertLoop] = []

    def routed(block: _Block, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        result, loop = block.run(forward, *args, **kwargs)
        loops.append(loop)
        return result

    with torch.no_grad():
        want = torch.func.functional_call(block.module, state, *_copied(args, kwargs))
        with _replaced([block], routed):
            got = torch.func.functional_call(block.module, state, *_copied(args, kwargs))
    _compare(block, got, want)
    ids = loops[-1].ids
    assert ids is not None, "the block was seen to be a loop"
    return ids


def _copied(args: Any, kwargs: Any) -> Any:
    return pytree.tree_map_only(torch.Tensor, torch.clone, (args, kwargs))


def _weights(parameter: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    spread = parameter.shape[-1] ** -0.5 if parameter.dim() else 1.0
    return torch.randn(parameter.shape, generator=generator) * spread


def _inputs(
    like: torch.Tensor, tokens: int, count: int, generator: torch.Generator
) -> torch.Tensor:
    """Random values like an argument that was seen in a run over `_TOKENS` tokens; integers are
    taken to be experts, different ones along the last axis."""
    shape = [tokens if size == _TOKENS else size for size in like.shape]
    if like.dtype.is_floating_point:
        return torch.randn(shape, generator=generator, dtype=like.dtype)
    scores = torch.rand([*shape[:-1], max(count, shape[-1])], generator=generator)
    return (scores.argsort(-1)[..., : shape[-1]] % count).to(like.dtype)


def _compare(block: _Block, got: Any, want: Any) -> None:
    for one, other in zip(pytree.tree_leaves(got), pytree.tree_leaves(want), strict=True):
        if isinstance(one, torch.Tensor):
            try:
                check_close(one, other)
            except PassError as error:
                reason = f"run once for all slots it gives other values, {error}"
                raise _refusal(block, reason.rstrip(".")) from error
