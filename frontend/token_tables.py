"""Every id that can be sampled must have a row in the tables that tokens are looked up in."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import fx

from graphwright.ir.errors import FrontendError
from graphwright.ir.program import Program
from graphwright.ir.source import source_line

__all__ = ["check_token_tables"]

aten = torch.ops.aten
_SAME_IDS = frozenset({
    aten.unsqueeze.default, aten.squeeze.default, aten.squeeze.dim, aten.view.default,
    aten.reshape.default, aten.flatten.using_ints, aten.alias.default, aten.detach.default,
    aten.contiguous.default, aten.clone.default, aten.to.dtype, aten.to.device,
    aten._to_copy.default, aten.expand.default,
})  # fmt: skip
_LOOK_UPS = (aten.embedding.default, aten.index.Tensor)


def check_token_tables(program: Program) -> None:
    """Raises FrontendError when the logits are wider than a table of tokens has rows: native code
    does not look whether an id is in the table."""
    width = int(program.output.meta["val"].shape[-1])
    for node, table in _tables(program.placeholder("tokens")):
        rows = int(table.meta["val"].shape[0])
        if rows < width:
            raise FrontendError(
                f"'{node.name}' looks tokens up in a table of {rows} rows, but the logits are for "
                f"{width} tokens: ids from {rows} on could be sampled and have no row"
                f"{source_line(node)}. Make the table or the head fit the other."
            )


def _tables(tokens: fx.Node) -> Iterator[tuple[fx.Node, fx.Node]]:
    """What reads a table by the ids as they are given, and the table."""
    pending = [tokens]
    for ids in pending:
        for user in ids.users:
            table: Any = user.args[0]
            given: Any = user.args[1] if len(user.args) > 1 else None
            if user.target in _SAME_IDS:
                pending.append(user)
            elif user.target in _LOOK_UPS and (given is ids or given == [ids]):
                yield user, table
