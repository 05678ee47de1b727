"""The memory that steps of one artifact run in: weights, caches, arena and what they are told."""

from __future__ import annotations

from graphwright.runtime.artifact import Artifact
from graphwright.runtime.buffers import allocate_buffers, load_weights, planned_bytes
from graphwright.runtime.cache_pools import CachePools
from graphwright.runtime.memory import Memory
from graphwright.runtime.plan import Plan
from graphwright.runtime.prefix_cache import PrefixCache
from graphwright.runtime.sequence_states import SequenceStates
from graphwright.runtime.snapshot_memory import SnapshotMemory, copy_on_host

__all__ = ["ModelMemory"]


class ModelMemory:
    """For `sequences` sequences of `context` tokens at a time, by the plan of `artifact`.

    rows: the most logits of a step, if fewer are wanted than the plan allows. mapped: weights are
    read where the file is mapped, else from a copy. prefix_cache: keep blocks for prompts that
    begin alike; where there are states, `snapshots` of those. blocks_each: of a sequence.
    Raises RequestError when there is no memory.
    """

    def __init__(
        self, artifact: Artifact, plan: Plan, sequences: int, context: int, *, mapped: bool,
        prefix_cache: bool, rows: int | None = None, snapshots: int = 0,
    ) -> None:  # fmt: skip
        self.plan, self.context = plan, context
        self.blocks_each = plan.blocks_of(context)
        size = sequences, self.blocks_each, rows, snapshots
        self.memory = Memory(planned_bytes(plan, *size))
        weights = load_weights(artifact, self.memory, mapped)
        self.buffers = allocate_buffers(plan, self.memory, weights, *size)
        self.pools = CachePools.of(plan, sequences, self.blocks_each)
        self.prefixes: PrefixCache | None = None
        self.states: SequenceStates | None = None
        if prefix_cache and (snapshots or not plan.has_states):
            self.prefixes = PrefixCache(self.pools, plan.has_states)
        if self.prefixes is not None and snapshots:
            sizes = plan.pool_sizes(sequences, self.blocks_each)
            kept = SnapshotMemory(plan, sizes, copy_on_host(self.buffers.kv))
            self.states = SequenceStates(self.prefixes, kept, plan.block_size, snapshots)
