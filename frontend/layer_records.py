"""What a forward does, op by op, on tensors without values: the evidence that layers are alike.

Inside a layer, tensors are named by where they come from: the layer's n-th input, its parameter of
some name, the result of its n-th op. So the records of two layers that do the same are equal.
Outside, a call of a layer is one entry, and what it returns is named after the layer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch._subclasses.fake_tensor import (
    FakeTensorMode,
)
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from graphwright.frontend.shape_results import ShapeResults, constant, type_of
from graphwright.frontend.source_lines import model_line

__all__ = ["LayerRecord", "Recorder"]

aten = torch.ops.aten
_SMALL = 1 << 12
_OFTEN = 24  # ops of one line in one module of a layer


@dataclass
class LayerRecord:
    """One call of one layer. `doubt` says why the call cannot be replaced by another layer's."""

    arguments: Hashable = None
    steps: list[Hashable] = field(default_factory=list)
    results: Hashable = None
    doubt: str | None = None

    def equals(self, other: LayerRecord) -> bool:
        """Did both calls do the same?"""
        mine, theirs = (self.arguments, self.results), (other.arguments, other.results)
        return mine == theirs and self.steps == other.steps


class Recorder(TorchDispatchMode):
    """While active, records every op. Layers tell when they begin and end."""

    def __init__(self, mode: FakeTensorMode) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._results = ShapeResults(mode)
        self.outer: list[Hashable] = []
        self.layers: dict[str, LayerRecord] = {}
        self.leaks: list[str] = []
        self._names: dict[int, Hashable] = {}  # of tensors seen outside layers
        self._inner: dict[int, Hashable] = {}  # of tensors seen in the running layer
        self._made: dict[int, str] = {}  # tensors made in a layer and not returned, by its name
        self._kept: list[Any] = []  # so that no id is used twice
        self._current: str | None = None
        self._lines: Counter[Hashable] = Counter()

    @property
    def repeats(self) -> bool:
        """Does some line of the model run so often that it may be in a loop over the tokens?"""
        return max(self._lines.values(), default=0) > _OFTEN

    def begin(self, layer: str, leaves: Sequence[Any], spec: Any, own: dict[int, str]) -> None:
        """`layer` is called with `leaves`; `own` names its parameters and buffers by id."""
        again = layer in self.layers
        record = self.layers[layer] = LayerRecord()
        if again:
            record.doubt = "is called several times"
        elif any(constant(x)[0] == "object" for x in leaves if not isinstance(x, torch.Tensor)):
            record.doubt = "is given an object whose state is not known"
        self.outer.append(("layer", layer, str(spec), tuple(map(self._outside, leaves))))
        self._inner = {key: ("own", name) for key, name in own.items()}
        for number, leaf in enumerate(leaves):
            if isinstance(leaf, torch.Tensor):
                self._inner.setdefault(id(leaf), ("input", number))
        record.arguments = (str(spec), tuple(map(self._inside, leaves)))
        self._kept.extend(leaves)
        self._current = layer

    def end(self, layer: str, inputs: Sequence[Any], leaves: Sequence[Any], spec: Any) -> None:
        """`layer` returned `leaves`, having been called with `inputs`."""
        record = self.layers[layer]
        record.results = (str(spec), tuple(map(self._inside, leaves)))
        memory = {_memory(x) for x in inputs if isinstance(x, torch.Tensor)}
        known = {id(x) for x in inputs}
        for number, leaf in enumerate(leaves):
            if not isinstance(leaf, torch.Tensor) or id(leaf) in known:
                continue
            if _memory(leaf) in memory:
                record.doubt = record.doubt or "returns a view of another tensor it has"
            if not leaf.is_contiguous():
                record.doubt = record.doubt or "returns a tensor that is not contiguous"
            memory.add(_memory(leaf))
            self._made.pop(id(leaf), None)
            self._names[id(leaf)] = ("result", len(self.outer), number)
        self._kept.extend(leaves)
        self._current = None

    def doubt(self, layer: str, why: str) -> None:
        """The call of `layer` cannot be replaced by another layer's."""
        self.layers[layer].doubt = why

    def finish(self, result: Any) -> None:
        """The forward returned `result`."""
        self.outer.append(("end", *map(self._outside, pytree.tree_leaves(result))))

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.prim.device.default:  # as often as all others, and says nothing new
            return func(*args, **kwargs)
        before, structure = pytree.tree_flatten((args, kwargs))
        is_data = func is aten.lift_fresh.default
        name = self._outside if self._current is None else self._inside
        described = tuple([_content(leaf) if is_data else name(leaf) for leaf in before])
        result = self._results.of(func, args, kwargs, before, structure)
        steps, names = self.outer, self._names
        if self._current is not None:
            steps, names = self.layers[self._current].steps, self._inner
            self._note_writes(func, args, kwargs)
        after = pytree.tree_leaves(result)
        for number, leaf in enumerate(after):
            if isinstance(leaf, torch.Tensor) and id(leaf) not in names:
                names[id(leaf)] = ("step", len(steps), number)
                if self._current is not None:
                    self._made[id(leaf)] = self._current
        line = model_line()
        if line is not None:
            self._lines[self._current, line] += 1
        steps.append((func, structure, described, tuple(map(type_of, after))))
        self._kept += [*before, *after]
        return result

    def _note_writes(self, func: Any, args: Any, kwargs: dict[str, Any]) -> None:
        assert self._current is not None
        if not func._schema.is_mutable:
            return
        for position, argument in enumerate(func._schema.arguments):
            if argument.alias_info is None or not argument.alias_info.is_write:
                continue
            value = args[position] if position < len(args) else kwargs.get(argument.name)
            for leaf in pytree.tree_leaves(value):
                if self._made.get(id(leaf)) != self._current:
                    self.layers[self._current].doubt = "writes to a tensor that it did not make"

    def _outside(self, value: Any) -> Hashable:
        if not isinstance(value, torch.Tensor):
            return constant(value)
        if id(value) in self._made:
            self.leaks.append(self._made[id(value)])
        return self._names.get(id(value), ("given", id(value))), type_of(value)

    def _inside(self, value: Any) -> Hashable:
        if isinstance(value, torch.Tensor) and id(value) in self._inner:
            return self._inner[id(value)], type_of(value)
        return self._outside(value)


def _content(value: Any) -> Hashable:
    """Data written in the code, by its values."""
    if not isinstance(value, torch.Tensor):
        return constant(value)
    values = getattr(value, "constant", None)
    values = value if values is None else values
    if values.numel() > _SMALL or type(values) is not torch.Tensor:
        return "data", id(value)
    with torch.utils._python_dispatch._disable_current_modes():
        return "data", repr(values.tolist()), type_of(values)


def _memory(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
