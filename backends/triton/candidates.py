"""The sizes that a product may be launched with, and which one is taken.

Shapes of tiles were compiled for sm_80 and sm_90 without spills, with a norm and a gate, too. The
first of `product_tiles` is the default by the cost model; `--tune` measures the others.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import get_args

from graphwright.backends.triton.chips import Chip
from graphwright.backends.triton.cost import (
    Product,
    product_seconds,
    ranked,
    vector_seconds,
)
from graphwright.backends.triton.kernels.few_rows import MOST_ROWS, FewRows
from graphwright.backends.triton.kernels.gemv import most_gemv_splits, vector_shape
from graphwright.backends.triton.kernels.linear import Tiles, most_splits, tiles_for
from graphwright.backends.triton.kernels.one_row import OneRow
from graphwright.backends.triton.kernels.weight_format import WeightFormat, WeightKind
from graphwright.backends.tuning import Choice, Picks

__all__ = ["few_rows_of", "few_rows_shapes", "one_row_of", "one_row_shapes", "pick_few_rows",
           "pick_one_row", "pick_splits", "pick_tiles", "product_of", "product_tiles", "tiles_of",
           "vector_splits"]  # fmt: skip

MOST = 6  # candidates of a choice
FEW = (1, 2, 4, 8)  # parts of the inputs
WIDE = 16384  # outputs from which 128 a tile are enough programs
MEASURED = {
    16: Tiles(128, 16, 128, num_warps=8, num_stages=6),
    64: Tiles(128, 64, 64, num_stages=4),
}


def product_tiles(product: Product, chips: Sequence[Chip], *, integer: bool = False) -> list[Tiles]:
    """Up to six, the one that should be fastest on the chips first."""
    base = tiles_for(
        product.rows, product.n, product.k, product.format, product.dtype, integer=integer
    )
    found = {base}
    if product.dtype != "float32":
        if product.rows <= 32:
            found |= {replace(base, outputs=outputs) for outputs in (32, 64)}
            found |= {replace(each, num_stages=4) for each in set(found)}
            most = most_splits(base, product.k, product.format)
            found |= {replace(each, splits=s) for each in set(found) for s in FEW if s <= most}
        elif product.rows <= 256 and not (integer and product.format.group):
            step = base.step
            few = {Tiles(64, 64, step, num_stages=4)}
            if product.format.kind != "w4":  # making weights of 4 bits there spills
                few.add(Tiles(128, 64, step, num_stages=4))
            if product.rows <= 64:
                most = most_splits(base, product.k, product.format)
                few |= {replace(each, splits=s) for each in few for s in FEW[:3] if s <= most}
            found |= few | {Tiles(128, 128, step, num_warps=8)}
        elif not integer:
            found.add(Tiles(128, 256, base.step, num_warps=8))
    found = {each for each in found if _fits(product, each, chips)} or {base}
    few_rows = product.rows <= 64  # then large tiles make fewer steps, else more programs
    simple = sorted(
        found,
        key=lambda e: (
            e.splits, (-1 if few_rows else 1) * e.outputs * e.rows, e.num_stages, _text(e)
        ),
    )  # fmt: skip
    best = ranked(simple, lambda e, chip: product_seconds(product, e, chip), chips)[:MOST]
    measured = _measured(product, chips)
    if measured is not None:
        best = [measured, *(each for each in best if each != measured)][:MOST]
    return best


def vector_splits(product: Product, chips: Sequence[Chip]) -> list[int]:
    """Parts of the inputs for the product of one row, the best first."""
    shape = vector_shape(product.n, product.format, product.dtype)
    most = most_gemv_splits(product.n, product.k, product.format, product.dtype)
    return ranked(
        [each for each in FEW if each <= most],
        lambda each, chip: vector_seconds(product, shape, each, chip),
        chips,
    )


def few_rows_shapes(product: Product) -> list[FewRows]:
    """For up to MOST_ROWS rows by w4 weights, the best first: what was fastest on an H200 for so
    many outputs of 16 rows (docs/performance-gpu.md); 2 to 8 rows were not measured.
    """
    assert product.rows <= MOST_ROWS and product.format.kind == "w4"
    if product.rows > 8:
        narrow = FewRows(16, 4) if product.n > 4096 else FewRows(32, 8)
        best = FewRows(64, 2) if product.n >= WIDE else narrow
    elif product.n >= WIDE:
        best = FewRows(32, 2)
    else:
        best = FewRows(16, 4) if product.n > 4096 else FewRows(16, 8)
    others = [FewRows(16, 4), FewRows(16, 8), FewRows(32, 2), FewRows(32, 8), FewRows(64, 2)]
    return [best, *(each for each in others if each != best)]


def one_row_shapes(product: Product, chips: Sequence[Chip]) -> list[OneRow]:
    """For a row by w4 weights, the best first: what was fastest on an H200 for all products of a
    model (docs/performance-gpu.md).
    """
    assert product.rows == 1 and product.format.kind == "w4"
    most = max(chip.multiprocessors for chip in chips)
    if product.format.group < 128:  # scales of several groups take registers, too; not measured
        return [OneRow(16, 8, 2, 2 * most), OneRow(16, 8), OneRow(16, 4, 4, 4 * most)]
    two, three = OneRow(16, 8, 2, 2 * most, 2), OneRow(16, 8, 3, 3 * most, 2)
    once = 2 * most < product.n / 16 <= 3 * most  # all tiles are there at once
    return [
        *((three, two) if once else (two, three)), OneRow(16, 16, 2, 2 * most),
        OneRow(32, 8, 2, 2 * most), OneRow(16, 4, 4, 4 * most, 2), OneRow(16, 8, 2),
    ]  # fmt: skip


def pick_tiles(
    product: Product, chips: Sequence[Chip], picks: Picks, *, integer: bool = False
) -> Tiles:
    """The tiles that were measured to be the best, or the default."""
    texts = tuple(_text(each) for each in product_tiles(product, chips, integer=integer))
    kind = "linear_int8" if integer else "linear"
    return tiles_of(picks.pick(_choice(kind, product, texts)))


def pick_splits(product: Product, chips: Sequence[Chip], picks: Picks) -> int:
    """As pick_tiles, for the product of one row."""
    texts = tuple(str(each) for each in vector_splits(product, chips))
    return int(picks.pick(_choice("gemv", product, texts)))


def pick_few_rows(product: Product, picks: Picks) -> FewRows:
    """As pick_tiles, for few rows by w4 weights."""
    texts = tuple(
        f"{e.outputs} warps={e.warps} stages={e.stages}" for e in few_rows_shapes(product)
    )
    return few_rows_of(picks.pick(_choice("few_rows", product, texts)))


def pick_one_row(product: Product, chips: Sequence[Chip], picks: Picks) -> OneRow:
    """As pick_tiles, for a row by w4 weights."""
    texts = tuple(
        f"{e.outputs} warps={e.warps} resident={e.resident} programs={e.programs} depth={e.depth}"
        for e in one_row_shapes(product, chips)
    )
    return one_row_of(picks.pick(_choice("one_row", product, texts)))


def one_row_of(text: str) -> OneRow:
    """What pick_one_row asked about."""
    found = re.fullmatch(r"(\d+) warps=(\d+) resident=(\d+) programs=(\d+) depth=(\d+)", text)
    assert found, text
    return OneRow(*(int(each) for each in found.groups()))


def few_rows_of(text: str) -> FewRows:
    """What pick_few_rows asked about."""
    found = re.fullmatch(r"(\d+) warps=(\d+) stages=(\d+)", text)
    assert found, text
    return FewRows(*(int(each) for each in found.groups()))


def product_of(choice: Choice) -> Product:
    """The product that a choice of this file is about."""
    shape = dict(choice.shape)
    kind, dtype, group = str(shape["weight"]).split("-")
    size, zero = int(group.removesuffix("z")), group.endswith("z")
    formats = {name: WeightFormat(name, dtype, size, zero) for name in get_args(WeightKind)}
    rows, n, k = (int(shape[name]) for name in ("rows", "n", "k"))
    return Product(rows, n, k, formats[kind], str(shape["dtype"]))


def tiles_of(text: str) -> Tiles:
    """What `_text` wrote."""
    found = re.fullmatch(r"(\d+)x(\d+)x(\d+) splits=(\d+) warps=(\d+) stages=(\d+)", text)
    assert found, text
    return Tiles(*(int(each) for each in found.groups()))


def _text(tiles: Tiles) -> str:
    return (
        f"{tiles.outputs}x{tiles.rows}x{tiles.step} splits={tiles.splits} "
        f"warps={tiles.num_warps} stages={tiles.num_stages}"
    )


def _choice(kernel: str, product: Product, candidates: tuple[str, ...]) -> Choice:
    format = product.format
    name = f"{format.kind}-{format.dtype}-{format.group}{'z' if format.zero else ''}"
    return Choice.of(
        kernel, candidates, work=product.weight_bytes, rows=product.rows, n=product.n, k=product.k,
        weight=name, dtype=product.dtype,
    )  # fmt: skip


def _measured(product: Product, chips: Sequence[Chip]) -> Tiles | None:
    """What was fastest for gate and up of 16 and of 64 rows by floats on an H200, of all sizes that
    were tried, where the cost model would take others (docs/triton-kernels.md).
    """
    if product.n < WIDE or product.format.kind != "dense" or product.dtype == "float32":
        return None
    rows = next((most for most in MEASURED if most // 2 < product.rows <= most), 0)
    if not rows or any(chip.arch < 90 for chip in chips):
        return None
    return MEASURED[rows] if _fits(product, MEASURED[rows], chips) else None


def _fits(product: Product, tiles: Tiles, chips: Sequence[Chip]) -> bool:
    """Do pipelined loads fit into the shared memory that every chip of these generations has? Of
    sm_80's, smaller ones have 99 KB.
    """
    room = min(99 << 10 if chip.arch < 90 else chip.shared for chip in chips)
    each = product.weight_bytes / (product.n * product.k)
    stage = tiles.step * (tiles.outputs * max(each, 1.0) + tiles.rows * product.item)
    return tiles.num_stages * stage <= room
