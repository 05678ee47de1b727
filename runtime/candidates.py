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
    are known; -1 then says that a logit of the row is NaN. Whoever reads them says which row: an
    object for each would cost a token as much as the rest of greedy choosing.
    """

    ids: NDArray[np.int32]
    values: NDArray[np.float32] | None = None

    @property
    def count(self) -> int:
        """How many there are of a row."""
        return int(self.ids.shape[1])

    def largest(self, row: int) -> int:
        """The token of the row's largest logit, -1 where one is NaN."""
        if self.values is not None and np.isnan(self.values[row, 0]):
            return -1
        return int(self.ids[row, 0])
