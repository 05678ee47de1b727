"""Inputs of a step, its rows, and what lowerings refuse of them: the same for every backend."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import torch
from torch import fx

from graphwright.backends.registry import arguments
from graphwright.ir.errors import BackendError
from graphwright.ir.layout import RowView, row_axis, row_view
from graphwright.ir.memory import results
from graphwright.ir.program import Program

__all__ = [
    "ADAPTER_INPUTS",
    "INPUTS",
    "MOST_POOLS",
    "POOL_UNIT",
    "RowCount",
    "experts_of_rows",
    "in_pool",
    "one_id_a_row",
    "row_count",
    "rows_of",
]

RowCount: TypeAlias = Literal["T", "R"]  # a step's tokens, or its sampled rows

# What the host says of a step, by element type.
INPUTS = {
    # [8]: tokens T, sequences B, block-table stride M, sampled rows R; where blocks lie in several
    # pools, numbers from one's table to the next one's, and of each pool but the first how many
    # POOL_UNITs its block 0 lies behind that of the first; zeros; last: has any an adapter?
    "batch": "int32",
    "tokens": "int64",  # [T]
    "positions": "int64",  # [T]
    "query_start": "int32",  # [B + 1]
    "block_table": "int32",  # [B * M], of each pool
    "sample_rows": "int32",  # [R]
}
MOST_POOLS = 3  # as the batch header has room for
POOL_UNIT = 4096  # bytes; runtime/plan.py has it, too


def in_pool(name: str, pool: int) -> str:
    """What `block_table` or `kv` is called where it is that of a pool."""
    return f"{name}_{pool}" if pool else name


# And where sequences choose adapters.
ADAPTER_INPUTS = {
    "adapters": "int64",  # [T]: the number of each token's, or how many there are for none
    "row_adapters": "int64",  # [R]: of each sampled row's
}


def rows_of(node: Any) -> RowView:
    """Where the rows of an argument lie. Raises BackendError when it has none."""
    view = row_view(node) if isinstance(node, fx.Node) else None
    if view is None:
        raise BackendError(f"'{node}' has no rows: {getattr(node, 'meta', {}).get('val')}.")
    return view


def row_count(program: Program, step: fx.Node) -> RowCount:
    """Does the step work on the T tokens or on the R sampled rows? Raises BackendError."""
    value = next(iter(results(step).values()))
    axis = row_axis(value)
    name = None if axis is None else program.dims.get(str(value.shape[axis]))
    if name not in ("T", "R"):
        shape = tuple(getattr(value, "shape", ()))
        raise BackendError(f"step '{step.name}' has shape {shape}; its rows are neither T nor R.")
    return "T" if name == "T" else "R"


def one_id_a_row(context: object, node: fx.Node) -> str | None:
    """Refuses indices that do not come one int64 a row."""
    ids = arguments(node)["ids"]
    view = rows_of(ids)
    if not view.dense or view.row_size != 1:
        return f"'{ids}' has {view.row_size} of {view.row_stride} elements a row, not one index"
    if ids.meta["val"].dtype is not torch.int64:
        return f"'{ids}' is {ids.meta['val'].dtype}, not int64"
    return None


def experts_of_rows(context: object, node: fx.Node) -> str | None:
    """Refuses rows that are not one list of int64 experts, and one vector or one for each."""
    given = arguments(node)
    x, experts = given["x"], given["experts"]
    if experts.meta["val"].dtype is not torch.int64:
        return f"'{experts}' is {experts.meta['val'].dtype}, not int64"
    length, slots = int(given["weight"].meta["val"].shape[2]), rows_of(experts).row_size
    found = rows_of(x).row_size
    if found not in (length, slots * length):
        return f"a row of '{x}' has {found} elements, not {length} or {slots} times as many"
    return None
