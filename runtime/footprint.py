"""What an engine takes, before there is one: by sequences and tokens, and what fits into memory."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, replace

from graphwright.runtime.buffers import planned_bytes
from graphwright.runtime.cuda.memory import device_bytes
from graphwright.runtime.plan import Plan

__all__ = ["Footprint", "as_draft", "draft_size"]


@dataclass(frozen=True)
class Footprint:
    """counter_bytes: of the region that kernels of a GPU count in; None: steps run on CPUs. draft:
    of a draft model beside it, there. snapshots: of states; None: as many as an engine with a
    prefix cache takes by itself.
    """

    plan: Plan
    counter_bytes: int | None = None
    draft: Plan | None = None
    snapshots: int | None = 0

    def parts(self, sequences: int, context: int) -> dict[str, int]:
        """Bytes by what they are for, where the steps run, as an engine for so many sequences of so
        many tokens allocates them.
        """
        blocks = self.plan.blocks_of(context)
        snapshots = self.plan.snapshots_for(self.snapshots, sequences)
        if self.counter_bytes is not None:
            return device_bytes(self.plan, sequences, blocks, self.counter_bytes, snapshots)
        parts = planned_bytes(self.plan, sequences, blocks, snapshots=snapshots)
        if self.draft is not None:
            parts["draft"] = sum(self.draft_parts(sequences, context).values())
        return parts

    def draft_parts(self, sequences: int, context: int) -> dict[str, int]:
        """Those of the draft, all of which are the part `draft`."""
        assert self.draft is not None, "there is no draft"
        tokens, rows = draft_size(self.plan, self.draft, context)
        return planned_bytes(as_draft(self.draft), sequences, self.draft.blocks_of(tokens), rows)

    def total(self, sequences: int, context: int) -> int:
        """The sum of the parts."""
        return sum(self.parts(sequences, context).values())

    def longest_context(self, memory: int) -> int | None:
        """The most tokens of a single sequence with which all fits into `memory` bytes, up to the
        model's limit; 0 where nothing does. None: any number, as tokens leave nothing behind.
        """
        plan, size = self.plan, self.plan.block_size
        most = memory // 4 + 1  # bytes of a block in a block table
        if plan.max_context is not None:
            most = min(most, plan.blocks_of(plan.max_context))
        blocks = _most(lambda count: self.total(1, count * size), memory, most)
        if blocks and plan.block_bytes == 0 and plan.max_context is None:
            return None
        return min(blocks * size, plan.max_context or blocks * size)

    def sequences_within(self, memory: int, context: int) -> int:
        """The most sequences of `context` tokens that fit into `memory` bytes at a time, or 0."""
        most = self.plan.most_sequences
        return _most(lambda sequences: self.total(sequences, context), memory, most)


def as_draft(plan: Plan) -> Plan:
    """The plan of an artifact that guesses for another one: it keeps all blocks of a sequence."""
    return replace(plan, pools=tuple(replace(pool, reach=None) for pool in plan.pools))


def draft_size(model: Plan, draft: Plan, context: int) -> tuple[int, int]:
    """(tokens of a sequence that a draft keeps, the most logits of its steps) beside an engine for
    sequences of `context` tokens."""
    return min(context, draft.max_context or context), model.entries["decode"].max_tokens


def _most(size: Callable[[int], int], limit: int, most: int) -> int:
    """The largest number up to `most` whose size, which grows with it, is within `limit`."""
    return bisect_right(range(1, most + 1), limit, key=size)
