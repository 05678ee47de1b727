"""Recurrences: a state computed from the state before, token after token or block after block.

torch.export unrolls such a loop for the example's length, often for minutes. So where a line of the
model runs suspiciously often, or no export works, the forward runs on shapes alone for a few
lengths. A line that runs more often the more tokens there are, on its own earlier results, and
makes a tensor that does not grow with them, computes a state: the model is recurrent.
"""

from __future__ import annotations

import logging
from collections import Counter
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from graphwright.frontend.layer_stubs import StubbedLayers
from graphwright.frontend.shape_runs import inputs_of_shape, run_on_shapes
from graphwright.frontend.source_lines import Line, line_of, model_line
from graphwright.frontend.stateless import StatelessForward
from graphwright.frontend.unchanged import unchanged
from graphwright.ir.errors import FrontendError

__all__ = ["refuse_recurrence"]

_LOG = logging.getLogger("graphwright.frontend")
_SHORT, _MIDDLE = 6, 12
_LONG = 576  # more than one block of 64, 128 or 256 tokens
_BLOCK = 64

Sizes = tuple[int, ...]


def refuse_recurrence(
    forward: StatelessForward, stubs: StubbedLayers, tokens: torch.Tensor, context: int | None
) -> None:
    """Raises FrontendError when `forward` computes a state from the state before.

    stubs: layers that are copies of others are skipped. context: the longest sequence it takes.
    Of a forward that does not run on shapes alone, it sees what comes before the line that ends it.
    """
    run = _Runs(forward, stubs, tokens)
    long = _LONG if context is None else min(_LONG, context // _BLOCK * _BLOCK)
    short = run.lines(_SHORT)
    for length in (_MIDDLE, long):
        if short and length > _SHORT and (context is None or length <= context):
            _refuse_states(run, short, length)


def _refuse_states(run: _Runs, short: list[Line], length: int) -> None:
    """Where steps become more and more: for `length` tokens more than for fewer, and for those more
    than for the fewest. Another path for longer sequences would be longer once."""
    longer = run.lines(length)
    fewer = Counter(short)
    growing = {line for line, count in Counter(longer).items() if count > fewer[line]}
    if not growing:
        return
    steps = [run.steps(n, growing) for n in (_SHORT, max(length // 2, _SHORT + 3), length)]
    grown = [(count, place) for place, count in steps[-1].items()
             if count > steps[1][place] > steps[0][place] > 0]  # fmt: skip
    if not grown:
        return
    count, place = max(grown, key=lambda item: item[0])
    (code, number, module), sizes = place
    model = run.forward.model
    raise FrontendError(
        f"{type(model).__name__} is recurrent: {_name(module, model)} computes a state "
        f"{list(sizes)} from the state before, in {steps[0][place]} steps for {_SHORT} tokens and "
        f"in {count} for {length}, each on the result of the one before{line_of(code, number)}. "
        f"A recurrence is compiled where the model decodes with a cache that holds its state, "
        f"which this one could not be seen to do."
    )


def _name(module: int, model: nn.Module) -> str:
    """What the model calls the module of that id."""
    for name, each in model.named_modules():
        if id(each) == module and name:
            return f"'{name}' ({type(each).__name__})"
    return type(model).__name__


class _Runs:
    """Runs of the forward on shapes, at any length.

    One that does not get to its end counts up to there, if it ends at the same line as the others:
    else how often a line ran says nothing about the length.
    """

    def __init__(
        self, forward: StatelessForward, stubs: StubbedLayers, tokens: torch.Tensor
    ) -> None:
        self.forward, self._stubs, self._tokens = forward, stubs, tokens
        self._ends: set[Line | None] = set()

    def lines(self, length: int) -> list[Line]:
        """The model's lines that ops came from, in order."""
        watch = _Lines()
        return watch.lines if self._run(length, watch) else []

    def steps(self, length: int, lines: set[Line]) -> Counter[tuple[Line, Sizes]]:
        """The longest chains of ops of `lines`, by line and the sizes of a result."""
        watch = _Chains(lines)
        return watch.steps if self._run(length, watch) else Counter()

    def _run(self, length: int, watch: _Watch) -> bool:
        mode = FakeTensorMode(allow_non_fake_inputs=True)
        tokens = self._tokens.repeat(-(-length // len(self._tokens)))[:length]
        end = None
        with unchanged(self.forward):
            try:
                inputs = inputs_of_shape(self.forward, tokens, mode)
                run_on_shapes(self.forward, inputs, mode, self._stubs.recording(watch), watch)
            except Exception as error:  # noqa: BLE001  (a model's own code, without values)
                end = watch.last
                _LOG.info("loops over tokens are looked for up to '%s'", error)
        self._ends.add(end)
        return len(self._ends) == 1


class _Watch(TorchDispatchMode):
    """Sees every op. Calls of layers do not matter. last: the line of the latest op."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.last: Line | None = None

    def begin(self, layer: str, leaves: Any, spec: Any, own: Any) -> None:
        """A layer is called."""

    def end(self, layer: str, inputs: Any, leaves: Any, spec: Any) -> None:
        """It returned."""

    def doubt(self, layer: str, why: str) -> None:
        """It did something that keeps others from being like it."""


class _Lines(_Watch):
    """The model's lines that ops came from."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[Line] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.last = line = model_line()
        if line is not None:
            self.lines.append(line)
        return func(*args, **(kwargs or {}))


class _Chains(_Watch):
    """steps: by line and the sizes of a result, how many ops of the line stand on each other."""

    def __init__(self, lines: set[Line]) -> None:
        super().__init__()
        self.steps: Counter[tuple[Line, Sizes]] = Counter()
        self._lines = lines
        self._behind: dict[int, dict[Line, int]] = {}  # by memory: ops of each line behind it
        self._kept: list[Any] = []  # so that no memory is used twice

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self.last = line = model_line()
        before = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        given = {_memory(x) for x in before}
        result = func(*args, **kwargs)
        after = [x for x in pytree.tree_leaves(result) if isinstance(x, torch.Tensor)]
        self._kept += [*before, *after]
        writes = func._schema.is_mutable
        made = [x for x in after if writes or _memory(x) not in given]
        if not made:
            return result  # views
        read = before[1:] if func in _OVERWRITES else before
        behind: dict[Line, int] = {}
        for tensor in read:
            for key, count in self._behind.get(_memory(tensor), {}).items():
                behind[key] = max(behind.get(key, 0), count)
        if line in self._lines and line is not None:
            behind[line] = behind.get(line, 0) + 1
            for tensor in made:
                place = line, tuple(tensor.shape)
                self.steps[place] = max(self.steps[place], behind[line])
        for tensor in made:
            old = self._behind.setdefault(_memory(tensor), {})
            for key, count in behind.items():
                old[key] = max(old.get(key, 0), count)
        return result


_OVERWRITES = frozenset(
    {torch.ops.aten.copy_.default, torch.ops.aten.fill_.Scalar, torch.ops.aten.fill_.Tensor,
     torch.ops.aten.zero_.default}
)  # fmt: skip


def _memory(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
