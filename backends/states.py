"""The states of a program as a backend lays them out: in blocks of a few positions each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Self, TypeAlias

from graphwright.backends.pools import Pool, pools_of
from graphwright.ir.errors import BackendError
from graphwright.ir.memory import align
from graphwright.ir.states import ConvState, IndexState, KVState, RecurrentState, State

__all__ = ["BLOCK_SIZE", "KnownState", "StateLayout", "cache_of", "index_of", "known_states"]

BLOCK_SIZE = 16  # positions in a block

KnownState: TypeAlias = KVState | IndexState | ConvState | RecurrentState


def known_states(states: Iterable[State]) -> tuple[KnownState, ...]:
    """`states`, all of which must be of the kinds that are known. Raises BackendError."""
    known: list[KnownState] = []
    for state in states:
        if not isinstance(state, (KVState, IndexState, ConvState, RecurrentState)):
            raise BackendError(
                f"state '{state.name}' is a {type(state).__name__}: neither a KV cache, nor "
                "one of index keys, nor the state of a convolution, nor that of a recurrence."
            )
        known.append(state)
    return tuple(known)


def cache_of(states: Iterable[State], name: str) -> KVState:
    """The cache whose keys are the input `name`. Raises BackendError."""
    for state in states:
        if isinstance(state, KVState) and state.inputs[0] == name:
            return state
    raise BackendError(f"'{name}' are not the keys of a cache.")


def index_of(states: Iterable[State], name: str) -> IndexState:
    """The cache of index keys that is the input `name`. Raises BackendError."""
    for state in states:
        if isinstance(state, IndexState) and state.name == name:
            return state
    raise BackendError(f"'{name}' is no cache of index keys.")


@dataclass(frozen=True)
class StateLayout:
    """pools: which states share a block. block_bytes: of a block of each. offsets: bytes from the
    start of a block of its pool, by the name of the state's input (`kv0_k`, `conv1`), and from a
    slot's for recurrent states.
    """

    states: tuple[KnownState, ...]
    pools: tuple[Pool, ...]
    block_bytes: tuple[int, ...]
    offsets: dict[str, int]
    slot_bytes: int = 0

    @classmethod
    def place(
        cls, states: Iterable[KnownState], context: int | None,
        size_of: Callable[[KnownState], Sequence[int]],
    ) -> Self:  # fmt: skip
        """In each pool state by state, in their order. size_of: bytes of each input of a state in a
        block; context: as pools_of takes it.
        """
        states = tuple(states)
        pools = pools_of(states, BLOCK_SIZE, context)
        offsets: dict[str, int] = {}
        ends, slot_end = [0] * len(pools), 0
        for state in states:
            if isinstance(state, RecurrentState):
                offsets[state.name] = slot_end
                slot_end = align(slot_end + state.size * 4)
                continue
            number = _number_of(pools, state.name)
            for name, size in zip(state.inputs, size_of(state), strict=True):
                offsets[name] = ends[number]
                ends[number] = align(ends[number] + size)
        return cls(states, pools, tuple(ends), offsets, slot_end)

    def pool_of(self, name: str) -> int:
        """The number of the pool that the state with this input lies in."""
        state = next(each for each in self.states if name in each.inputs)
        return 0 if isinstance(state, RecurrentState) else _number_of(self.pools, state.name)

    def bytes_of(self, name: str) -> int:
        """Bytes from a block to the next, in the pool of the state with this input."""
        return self.block_bytes[self.pool_of(name)]

    def place_of(self, name: str) -> int:
        """Bytes from the start of block 0 to the state's input, in that block or in slot 0."""
        recurrent = any(s.name == name for s in self.states if isinstance(s, RecurrentState))
        return self.offsets[name] - (self.slot_bytes if recurrent else 0)

    @property
    def slot_stride(self) -> int:
        """float32 elements from a slot back to the next."""
        return self.slot_bytes // 4

    def describe(self) -> dict[str, Any]:
        """For plan.json: `states` are the caches, `rolling` the rolling states; only where there
        are any, `chosen` says of how many positions a token reads a cache, `indexes` are the caches
        of index keys, `recurrent` the states of recurrences, and `slot_bytes` what they take of a
        sequence. `reach`, if attention does not reach back to all positions: which ones it does.
        `pools`, if there are several: block_bytes and reach of each; caches and index keys say in
        which one they lie, and block_bytes is the sum.
        """
        kinds: dict[type[State], list[dict[str, Any]]] = {}
        for state in self.states:
            kinds.setdefault(type(state), []).append(self._describe(state))
        described = [
            pool.describe(size) for pool, size in zip(self.pools, self.block_bytes, strict=True)
        ]
        recurrent = kinds.get(RecurrentState)
        return {
            "block_size": BLOCK_SIZE,
            "block_bytes": sum(self.block_bytes),
            "states": kinds.get(KVState, []),
            "rolling": kinds.get(ConvState, []),
            **({"indexes": kinds[IndexState]} if IndexState in kinds else {}),
            **({"recurrent": recurrent, "slot_bytes": self.slot_bytes} if recurrent else {}),
            **({"pools": described} if len(described) > 1 else {}),
            **({"reach": described[0]["reach"]} if _has_one_reach(described) else {}),
        }

    def _describe(self, state: KnownState) -> dict[str, Any]:
        if isinstance(state, RecurrentState):
            return {"name": state.name, "size": state.size, "offset": self.offsets[state.name]}
        dtype = str(state.dtype).removeprefix("torch.")
        pool = {"pool": self.pool_of(state.inputs[0])} if len(self.pools) > 1 else {}
        if isinstance(state, KVState):
            return {
                "name": state.name,
                "heads": state.heads,
                "head_dim": state.head_dim,
                "value_dim": state.value_dim,
                "dtype": dtype,
                "mask": str(state.mask),
                "first": state.mask.first,
                "span": state.mask.tail,
                "k_offset": self.offsets[state.inputs[0]],
                "v_offset": self.offsets[state.inputs[1]],
                "scale_offsets": [self.offsets[name] for name in state.inputs[2:]],
                "bytes_per_token": state.bytes_per_token(),
                **({"chosen": state.chosen} if state.chosen else {}),
                **pool,
            }
        if isinstance(state, IndexState):
            return {
                "name": state.name,
                "heads": state.heads,
                "head_dim": state.head_dim,
                "dtype": dtype,
                "span": state.mask.span,
                "offset": self.offsets[state.name],
                "bytes_per_token": state.bytes_per_token(),
                **pool,
            }
        return {
            "name": state.name,
            "kept": state.kept,
            "channels": state.channels,
            "dtype": dtype,
            "offset": self.offsets[state.name],
        }


def _number_of(pools: Sequence[Pool], name: str) -> int:
    return next(number for number, pool in enumerate(pools) if name in pool.states)


def _has_one_reach(pools: Sequence[dict[str, Any]]) -> bool:
    return len(pools) == 1 and "reach" in pools[0]
