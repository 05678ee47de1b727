"""Which elements of stored values, states, rows and weights one element of a value is made of."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import fx

from graphwright.backends.regions.evaluation import Evaluation
from graphwright.backends.regions.index import Index, Variable, flatten, unflatten
from graphwright.backends.regions.reduced import Reduced
from graphwright.backends.regions.shapes import Arguments, arguments, shape_of
from graphwright.backends.scans.body import is_reduction

__all__ = ["Access", "Read", "access_of", "loop_sizes", "static_sizes"]


@dataclass(frozen=True)
class Read:
    """An element of a placeholder or of a stored node, by its position in row-major order."""

    node: fx.Node
    position: Index


@dataclass(frozen=True)
class Access:
    """What one element of a value reads. kept: the indices of the loops over its elements.
    reduced: of the loops over the terms of a reduction."""

    kept: tuple[Index, ...]
    reduced: tuple[Index, ...]
    reads: tuple[Read, ...]


def static_sizes(node: fx.Node) -> list[int]:
    """The shape of a value of a step, whose sizes are all known."""
    return [int(size or 0) for size in shape_of(node)]


def loop_sizes(sizes: Sequence[int]) -> tuple[int, ...]:
    """The loops over the elements of a value, without those that run once."""
    return tuple(size for size in sizes if size != 1) or (1,)


def access_of(
    node: fx.Node, sizes: Sequence[int], stored: Collection[fx.Node], *, copied: bool
) -> Access:
    """What an element of `node` reads, where loops of `sizes` go over its elements and the nodes
    `stored` are read from memory: `node` itself, too, if it is `copied`."""
    reads = _Reads(stored, None if copied else node)
    kept = [reads.variable(0, size - 1, None) for size in sizes]
    indices = unflatten(flatten(kept, sizes), static_sizes(node))
    terms: list[Index] = []
    if copied:
        reads.of(node, indices)
    elif is_reduction(node):
        reduced = Reduced.of(node, arguments(node), indices)
        terms = [reads.variable(0, size - 1, None) for size in reduced.sizes]
        reads.of(reduced.source, reduced.term(flatten(terms, reduced.sizes)))
    else:
        reads.compute(node, indices)
    return Access(tuple(kept), tuple(terms), tuple(reads.found))


class _EveryOp(Mapping[str, Callable[[Arguments], Any]]):
    """What an op computes does not matter to what it reads."""

    def __getitem__(self, name: str) -> Callable[[Arguments], Any]:
        return lambda given: None

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0

    def __contains__(self, name: object) -> bool:
        return True


class _Reads(Evaluation[None]):
    """Walks down to what is loaded; values themselves are not computed."""

    pointwise: ClassVar[Mapping[str, Callable[[Arguments], Any]]] = _EveryOp()
    reductions: ClassVar[Mapping[str, Any]] = {}  # none but the value itself

    def __init__(self, stored: Collection[fx.Node], root: fx.Node | None) -> None:
        self._stored, self._root = stored, root
        self._numbers = itertools.count()
        self._known: dict[tuple[Any, ...], Any] = {}
        self.found: dict[Read, None] = {}

    def of(self, node: Any, indices: list[Index]) -> None:
        if node in self._stored and node is not self._root:
            self.load(node, flatten(indices, static_sizes(node)))
        else:
            super().of(node, indices)

    def load(self, node: fx.Node, position: Index) -> None:
        self.found[Read(node, position)] = None

    def variable(self, low: float, high: float, value: None) -> Index:
        return Index(frozenset({(Variable(next(self._numbers), low, high, None), 1)}))

    def recall(self, key: tuple[Any, ...], compute: Callable[[], Any]) -> Any:
        if key not in self._known:
            self._known[key] = compute()
        return self._known[key]

    def bind(self, value: None) -> None:
        return None

    def constant(self, number: Any, dtype: str) -> None:
        return None

    def cast(self, value: None, dtype: str) -> None:
        return None

    def stride(self, node: fx.Node) -> int:
        return 0

    def row_count(self) -> None:
        return None

    def clamped(self, index: Index, most: int) -> None:
        return None

    def before(self, index: Index, end: int, yes: None, no: None) -> None:
        return None

    def from_end(self, number: None, size: int) -> None:
        return None
