"""The memory that steps of one artifact run in: weights, caches, arena and what they are told."""

from __future__ import annotations

from graphwright.runtime.artifact import Artifact
from graphwright.runtime.buffers import allocate_buffers, load_weights, planned_bytes
from graphwright.runtime.kv_cache import BlockPool
from graphwright.runtime.memory import Memory
from graphwright.runtime.plan import Plan
from graphwright.runtime.prefix_cache import PrefixCache

__all__ = ["ModelMemory"]


class ModelMemory:
    """For `sequences` sequences of `context` tokens at a time, by the plan of `artifact`.

    rows: the most logits of a step, if fewer are wanted than the plan allows. mapped: weights are
    read where the file is mapped, else from a copy. prefix_cache: keep blocks for prompts that
    begin alike, unless states belong to one sequence. blocks_each: of a sequence.
    Raises RequestError when there is no memory.
    """

    def __init__(
        self, artifact: Artifact, plan: Plan, sequences: int, context: int, *, mapped: bool,
        prefix_cache: bool, rows: int | None = None,
    ) -> None:  # fmt: skip
        self.plan, self.context = plan, context
        self.blocks_each = plan.blocks_of(context)
        size = sequences, self.blocks_each, rows
        self.memory = Memory(planned_bytes(plan, *size))
        weights = load_weights(artifact, self.memory, mapped)
        self.buffers = allocate_buffers(plan, self.memory, weights, *size)
        shares = prefix_cache and plan.shares_blocks
        blocks = plan.pool_of(sequences, self.blocks_each)
        self.pool = BlockPool(blocks, sequences if plan.slot_bytes else 0)
        self.prefixes = PrefixCache(self.pool, plan.block_size) if shares else None
