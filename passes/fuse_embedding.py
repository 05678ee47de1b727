"""Table look-ups by token id as gw.embedding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from graphwright.ir.layout import row_axis
from graphwright.ir.program import Program
from graphwright.passes.base import Pass, Stage
from graphwright.passes.pattern import Match, Rewrite, apply_rewrites

__all__ = ["FuseEmbedding"]

aten, gw = torch.ops.aten, torch.ops.gw


def _pattern(weight: Any, ids: Any, padding: Any, by_frequency: Any, sparse: Any) -> Any:
    return aten.embedding.default(weight, ids, padding, by_frequency, sparse)


def _check(match: Match) -> str | None:
    weight, ids = match["weight"], match["ids"]
    if not isinstance(weight, fx.Node) or weight.op != "get_attr":
        return f"the table '{weight}' is not a weight."
    if row_axis(ids.meta["val"]) is None:
        return f"the indices {list(ids.meta['val'].shape)} have no row for each token."
    return None


@dataclass(frozen=True)
class FuseEmbedding(Pass):
    """aten.embedding(weight, ids)  →  gw.embedding(weight, ids).

    Padding indices mean nothing without training. Leaves: a table that is computed.
    """

    stage: ClassVar[Stage] = Stage.FUSE

    def run(self, program: Program) -> int:
        rewrite = Rewrite(_pattern, lambda weight, ids: gw.embedding.default(weight, ids), _check)
        return apply_rewrites(self, program, (rewrite,))
