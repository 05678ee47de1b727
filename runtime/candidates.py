"""The largest logits of a row, where a step's code has found them: what a token is chosen from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Candidates"]


@dataclass(frozen=True)
class Candidates:
    """ids int32 [>= R, k]: tokens in falling order of their logits, the lower one first of equals.

    values float32 [>= R, k]: the logits, NaN before all others. None when k is 1 and only tokens
    are known; -1 then says that a logit of the row is NaN.
    """

    ids: NDArray[np.int32]
    values: NDArray[np.float32] | None = None

    def row(self, number: int) -> Candidates:
        """Those of one row: ids and values [k]."""
        return Candidates(self.ids[number], None if self.values is None else self.values[number])

    def __len__(self) -> int:
        """How many there are of a row."""
        return int(self.ids.shape[-1])

    @property
    def has_nan(self) -> bool:
        """Was a logit of the row NaN? Of one row."""
        return bool(self.ids[0] < 0 if self.values is None else np.isnan(self.values[0]))
