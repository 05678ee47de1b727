"""What a recurrence asks memory for before it needs it: the rows and results of later tokens.

A tile reads a short run of a row, and then one far behind it, in the row of the next token: no
access that the hardware could follow. In the time that a tile takes for a token such a run comes
from the last cache. The lines of results are asked for, too: states are not written while a result
before them waits for its line.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import fx
from tvm.tirx.script import builder as T

from graphwright.backends.regions.index import Index, Variable, flatten
from graphwright.backends.scans.stages import Stage
from graphwright.backends.scans.tiles import Tiles
from graphwright.backends.tvm.kernels.kernel import Expr

__all__ = ["Run", "fetch_runs", "runs_of"]

AHEAD = 2  # tokens
LINE = 16  # float32 elements of a cache line
LONGEST = 2048  # elements: the hardware follows longer runs
UNROLLED = 16  # lines that are asked for without a loop


@dataclass(frozen=True)
class Run:
    """Elements [first, last] of a row of `node`, or of the results (None), and `steps` further for
    each index along the tile's axes at which a tile starts."""

    node: fx.Node | None
    steps: tuple[int, ...]
    first: int
    last: int


def runs_of(tiles: Tiles, rows: Collection[fx.Node]) -> list[Run]:
    """The runs of `rows` and results that a tile touches, as far as they show."""
    found: dict[Run, None] = {}
    results = 0
    for stage in sorted(tiles.stages.order, key=lambda stage: stage.place.number):
        for read in stage.access.reads:
            if read.node in rows:
                found.update(dict.fromkeys(_runs(tiles, stage, read.node, read.position)))
        if stage.place.kind == "result":
            place = flatten(stage.access.kept, stage.sizes) + results
            found.update(dict.fromkeys(_runs(tiles, stage, None, place)))
            results += math.prod(stage.sizes)
    return list(found)


def _runs(tiles: Tiles, stage: Stage, node: fx.Node | None, position: Index) -> Iterator[Run]:
    along = [
        stage.access.kept[axis.dims[stage.place]] if stage.place in axis.dims else None
        for axis in tiles.axes
    ]
    first = last = position.constant
    for atom, coefficient in position.terms:
        if not isinstance(atom, Variable):
            return
        index = Index(frozenset({(atom, 1)}))
        size = tiles.axes[along.index(index)].block if index in along else int(atom.high) + 1
        reach = coefficient * (size - 1)
        first, last = first + min(reach, 0), last + max(reach, 0)
    if last - first < LONGEST:
        yield Run(node, tuple(_coefficient(position, index) for index in along), first, last)


def _coefficient(position: Index, index: Index | None) -> int:
    if index is None:
        return 0
    ((variable, _),) = index.terms
    return position.coefficient(variable)


def fetch_runs(
    runs: Sequence[Run], rows: Mapping[fx.Node | None, tuple[Expr, int]], token: Expr, end: Expr,
    starts: Sequence[Expr],
) -> None:  # fmt: skip
    """Asks for what the tile that starts at `starts` touches of the token `AHEAD` behind `token`.
    rows: memory and the stride of rows, and of results (None)."""
    with T.If(token + AHEAD < end), T.Then():
        for run in runs:
            buffer, stride = rows[run.node]
            place = (token + AHEAD) * stride + run.first
            for start, step in zip(starts, run.steps, strict=True):
                place = place + start * step
            first, lines = T.bind(place), (run.last - run.first) // LINE
            if lines > UNROLLED:
                with T.serial(0, lines) as line:
                    _ask(buffer, first + line * LINE)
            else:
                for line in range(lines):
                    _ask(buffer, first + line * LINE)
            _ask(buffer, first + (run.last - run.first))


def _ask(buffer: Expr, at: Expr) -> None:
    T.evaluate(
        T.call_llvm_intrin(
            "void", "llvm.prefetch.p0", T.address_of(buffer[at]), T.int32(0), T.int32(3),
            T.int32(1),
        )
    )  # fmt: skip
