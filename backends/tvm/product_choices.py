"""What the matrix products leave open: their blocks for one row, for a few and for many.

A block of r rows by t tiles is named ``rxt``, with an ``a`` where weights are prefetched, an ``m``
where AMX's registers hold the sums, and ``st`` where a row that comes alone reads t tiles side by
side. Integer products are exact whatever the blocks; of float32 ones the order of the additions may
differ.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TypeAlias

from graphwright.backends.tuning import Choice, Picks
from graphwright.backends.tvm.kernels.amx import HEIGHT
from graphwright.backends.tvm.kernels.matmul import Tiling, Tilings
from graphwright.backends.tvm.target import Cpu

__all__ = ["BATCH", "MANY", "SMALL", "candidate_tilings", "choose_tilings", "product_choices",
           "small_tilings"]  # fmt: skip

SMALL = 64 << 10  # bytes of a weight that stays in a core's first two caches
BATCH, MANY = 8, 256  # rows at which blocks for a few and for many are measured
WEIGHTS = {1: 1.0, MANY: 0.5, BATCH: 0.25}  # of choices: a token alone is what people wait for
# Candidates by float32 lanes of a register (which say how many sums there is room for).
_Candidates: TypeAlias = dict[int, tuple[str, ...]]
_ONE: _Candidates = dict.fromkeys((8, 16), ("1x1as4", "1x1as4a", "1x1a", "1x1", "1x2a", "1x4a"))
_FEW: _Candidates = {16: ("8x1a", "8x1", "4x1a", "4x2a"), 8: ("4x1a", "4x1", "2x1a", "2x2a")}
_MANY: _Candidates = {
    16: ("8x2", "8x2a", "4x4", "8x1a", "12x2"),
    8: ("4x1", "4x1a", "2x1", "2x2", "1x4", "3x2", "6x1"),
}
_MANY_AMX = {False: ("32x2m", "32x4m", "32x8m", "8x2"), True: ("32x2m", "4x4")}  # in groups?
_MANY_FLOATS: _Candidates = {
    16: ("8x2a", "12x2a", "8x3a", "4x4a"),
    8: ("6x1a", "6x1", "4x1a", "2x2a", "3x2a"),
}


def choose_tilings(
    picks: Picks, cpu: Cpu, kind: str, n: int, k: int, size: int, max_rows: int, default: Tilings
) -> Tilings | None:
    """The blocks picked for products of `kind` (w4g32, bf16, …) in calls of up to `max_rows` rows.

    None: the default ones everywhere. Where nothing else is picked, a weight of few bytes (`size`)
    has those of small_tilings.
    """
    found = {
        rows: picks.pick(choice)
        for rows, choice in product_choices(cpu, kind, n, k, max_rows, default).items()
    }
    one, batch, many = (
        candidate_tilings(rows, found[rows], default) if rows in found else None
        for rows in (1, BATCH, MANY)
    )
    if one and batch:
        return one[0], batch[1], 1
    return one or batch or many or small_tilings(size, default)


def small_tilings(size: int, default: Tilings) -> Tilings | None:
    """Of a matrix of few bytes (`size`) one kind of blocks, of few rows; None for others.

    Memory is never its limit, and each size of blocks is code of its own, which takes longer to
    compile than such a matrix will ever take to read.
    """
    if size > SMALL:
        return None
    many = default[0] if default[1].amx else default[1]
    small = replace(many, rows=many.rows[1:] or many.rows, ahead=False)
    return small, small, 0


def product_choices(
    cpu: Cpu, kind: str, n: int, k: int, max_rows: int, default: Tilings
) -> dict[int, Choice]:
    """The choices of a product by the rows at which they are measured.

    Calls of few rows have blocks for one row and, where all of them are few, for more; others have
    blocks for many.
    """
    few, many, limit = default
    one = replace(few, rows=(1,))
    of_many = _MANY if kind.startswith("w") else _MANY_FLOATS
    if many.amx:
        of_many = {cpu.lanes: _MANY_AMX["g" in kind]}
    asked = {1: (one, _ONE)} if max_rows < MANY else {MANY: (many, of_many)}
    if max_rows <= limit:
        asked[BATCH] = (few, _FEW)
    return {
        rows: Choice.of(
            f"linear_{kind}",
            tuple(dict.fromkeys((tiling.name, *candidates.get(cpu.lanes, ())))),
            work=WEIGHTS[rows] * n * k, n=n, k=k, rows=rows,
        )
        for rows, (tiling, candidates) in asked.items()
    }  # fmt: skip


def candidate_tilings(rows: int, name: str, default: Tilings) -> Tilings | None:
    """What a product is built with where `name` was picked at `rows` rows, and nothing else.

    None for the default.
    """
    few, many, limit = default
    if rows == MANY:
        return None if name == many.name else (few, _tiling(name), limit)
    if rows == 1:
        if name == replace(few, rows=(1,)).name:
            return None
        one = _tiling(name)
        if limit >= BATCH:
            return one, few, 1
        fit = tuple(r for r in few.rows if r * one.tiles <= few.rows[0] * few.tiles)
        return replace(one, rows=fit or (1,)), many, limit
    return None if name == few.name else (few, _tiling(name), 1)


def _tiling(name: str) -> Tiling:
    size, _, side = name.partition("s")
    rows, tiles = size.rstrip("am").split("x")
    amx = size.endswith("m")
    counts = [int(rows)]
    while counts[-1] > (HEIGHT if amx else 1):
        counts.append(counts[-1] // 2)
    abreast, abreast_ahead = int(side.rstrip("a") or 1), side.endswith("a")
    return Tiling(tuple(counts), int(tiles), "a" in size, abreast, abreast_ahead, amx)
