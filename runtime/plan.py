"""The compiler's plan, as the runtime reads it from plan.json."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from graphwright.runtime.errors import ArtifactError, RequestError
from graphwright.runtime.memory import ALIGNMENT

__all__ = ["DEFAULT_CONTEXT", "POOL_UNIT", "SNAPSHOTS_EACH", "EntryPlan", "Plan", "PoolPlan",
           "Reach"]  # fmt: skip

POOL_UNIT = 4096  # bytes, as compiled code counts them from pool to pool (backends/rows.py)
DEFAULT_CONTEXT = 2048  # tokens of a sequence, at most, where nobody says
SNAPSHOTS_EACH = 4  # snapshots of states for each sequence that may run, where nobody says


@dataclass(frozen=True)
class EntryPlan:
    """One entry of the step library: how much it takes in one call, and the arena that needs."""

    max_tokens: int
    max_rows: int
    arena_bytes: int


@dataclass(frozen=True)
class Reach:
    """What later steps may read of a sequence's cache: its first `first` positions, and of the
    others those that are less than `span` before the token that reads."""

    first: int
    span: int


@dataclass(frozen=True)
class PoolPlan:
    """A pool of blocks for the caches that reach equally far back. block_bytes: of one, which holds
    block_size positions of all of them. reach: what is read of them; None: all positions."""

    block_bytes: int
    reach: Reach | None = None

    def held_of(self, blocks: int, block_size: int) -> int:
        """The most of a sequence's `blocks` that it holds, but for those of a step's new tokens: a
        block that no later step can read is given back (runtime/kv_cache.py)."""
        if self.reach is None:
            return blocks
        first, behind = (
            -(-count // block_size) for count in (self.reach.first, self.reach.span - 1)
        )
        # one more where the span begins inside a block, and one where the new tokens do
        return min(blocks, first + behind + 2)


@dataclass(frozen=True)
class Plan:
    """Sizes of everything that the engine allocates. `max_context`: None when there is no limit.

    alone_rows: tokens of a step up to which each thread needs an arena of its own. slot_bytes: of
    the recurrent states of one sequence. rolling: do its blocks hold states of one sequence, too?
    pools: of blocks; those states are in the first one. caches: do they hold keys and values?
    float_products: weights that are multiplied as floats; None: nobody said. adapters: the names of
    those that a sequence may choose, by number. adapter_bytes_per_token: of the weights that a
    token with one reads.
    """

    entries: dict[str, EntryPlan]
    block_size: int
    pools: tuple[PoolPlan, ...]
    weights_bytes: int
    weight_bytes_per_token: int
    vocab_size: int
    max_context: int | None
    alone_rows: int = 0
    slot_bytes: int = 0
    rolling: bool = False
    float_products: tuple[str, ...] | None = None
    caches: bool = True
    adapters: tuple[str, ...] = ()
    adapter_bytes_per_token: int = 0

    @property
    def block_bytes(self) -> int:
        """Of a block of each pool: what as many positions take in all caches."""
        return sum(pool.block_bytes for pool in self.pools)

    @property
    def has_states(self) -> bool:
        """Are there rolling or recurrent states? The first block of a sequence is its own then."""
        return self.rolling or self.slot_bytes > 0

    @property
    def goes_back(self) -> bool:
        """May positions that were computed be computed again, with other tokens?"""
        return not self.has_states

    @property
    def snapshot_bytes(self) -> int:
        """Of the states of one sequence at one position, with the blocks that cannot be shared: its
        first one, where rolling states lie, and the last one, which it goes on to fill."""
        size = self.slot_bytes + self.block_bytes * (2 if self.caches else 1)
        return -(-size // ALIGNMENT) * ALIGNMENT

    def snapshots_for(self, asked: int | None, sequences: int) -> int:
        """`asked` snapshots of states, or as many as are taken where nobody asks; none where there
        are no states. Raises RequestError."""
        if asked is None:
            return SNAPSHOTS_EACH * sequences if self.has_states else 0
        if asked < 0:
            raise RequestError(f"snapshots must be 0 or more, not {asked}.")
        if asked and not self.has_states:
            raise RequestError(
                f"{asked} snapshots were asked for, but this model has neither recurrent nor "
                "rolling states to keep: leave snapshots out."
            )
        return asked

    @property
    def rows(self) -> int:
        """The most rows that a step may sample."""
        return max(entry.max_rows for entry in self.entries.values())

    @property
    def most_sequences(self) -> int:
        """The most sequences that may run at a time."""
        prefill = self.entries["prefill"]
        return min(prefill.max_tokens, prefill.max_rows)

    def context_for(self, asked: int | None) -> int:
        """`asked` tokens a sequence, or what is taken where nobody asks. Raises RequestError."""
        limit = self.max_context
        if asked is None:
            return min(limit or DEFAULT_CONTEXT, DEFAULT_CONTEXT)
        if asked < 1 or (limit is not None and asked > limit):
            raise RequestError(
                f"the context must be from 1 to {limit or 'any number of'} tokens, not {asked}."
            )
        return asked

    def sequences_for(self, asked: int) -> int:
        """`asked` sequences at a time. Raises RequestError."""
        if not 1 <= asked <= self.most_sequences:
            raise RequestError(
                f"max_sequences must be from 1 to {self.most_sequences}, not {asked}."
            )
        return asked

    def blocks_of(self, context: int) -> int:
        """Blocks of a sequence of so many tokens: entries of its block table."""
        return -(-context // self.block_size)

    def pool_sizes(self, sequences: int, blocks: int) -> tuple[int, ...]:
        """Blocks in each pool for so many sequences of so many blocks, with the new tokens of one
        step."""
        step = self.blocks_of(max(entry.max_tokens for entry in self.entries.values()))
        held = (pool.held_of(blocks, self.block_size) for pool in self.pools)
        return tuple(min(sequences * blocks, sequences * each + step) for each in held)

    def table_pitch(self, sequences: int, blocks: int) -> int:
        """Numbers from a pool's block table to the next one's."""
        count = sequences * blocks
        return count if len(self.pools) == 1 else -(-count * 4 // ALIGNMENT) * ALIGNMENT // 4

    @property
    def arena_bytes(self) -> int:
        """The arena that is large enough for every entry."""
        return max(entry.arena_bytes for entry in self.entries.values())

    def kv_bytes(self, sequences: int, sizes: Sequence[int]) -> tuple[int, int]:
        """Of (the slots that lie before block 0, the pools of so many blocks) of so many sequences.
        Compiled code is given the address of block 0, which must be inside the region even without
        any caches.
        """
        slots = sequences * self.slot_bytes
        last = self.pools[-1].block_bytes * sizes[-1]
        size = POOL_UNIT * self.pool_places(sizes)[-1] + last
        return slots, max(size, ALIGNMENT if slots else 0)

    def pool_places(self, sizes: Sequence[int]) -> tuple[int, ...]:
        """How many POOL_UNITs block 0 of each pool lies behind that of the first."""
        units = (
            -(-pool.block_bytes * size // POOL_UNIT)
            for pool, size in zip(self.pools, sizes, strict=True)
        )
        return tuple(accumulate(units, initial=0))[:-1]

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> Plan:
        """Raises ArtifactError when something is missing."""
        try:
            entries = {
                name: EntryPlan(
                    int(entry["max_tokens"]), int(entry["max_rows"]), int(entry["arena_bytes"])
                )
                for name, entry in found["entries"].items()
            }
            context, kv = found["max_context"], found["kv"]
            plan = cls(
                entries,
                int(kv["block_size"]),
                tuple(_pool(each) for each in kv.get("pools") or [kv]),
                int(found["weights"]["bytes"]),
                int(found["weights"]["bytes_per_token"]),
                int(found["vocab_size"]),
                None if context is None else int(context),
                int(found.get("alone_rows", 0)),
                int(kv.get("slot_bytes", 0)),
                bool(kv.get("rolling")),
                tuple(found["float_products"]) if "float_products" in found else None,
                bool(found["kv"].get("states") or found["kv"].get("indexes")),
                tuple(str(each["name"]) for each in found.get("adapters", {}).get("entries", ())),
                int(found.get("adapters", {}).get("bytes_per_token", 0)),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ArtifactError(f"the artifact's plan.json is incomplete: {error!r}.") from error
        if not {"decode", "prefill"} <= set(entries):
            raise ArtifactError(
                f"the artifact's plan.json has entries {sorted(entries)}, not decode and prefill."
            )
        return plan


def _pool(found: dict[str, Any]) -> PoolPlan:
    reach = found.get("reach")
    return PoolPlan(
        int(found["block_bytes"]),
        None if reach is None else Reach(int(reach["first"]), int(reach["span"])),
    )
