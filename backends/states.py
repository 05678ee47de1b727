"""The states of a program as a backend lays them out: in blocks of a few positions each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

from graphwright.ir.errors import BackendError
from graphwright.ir.states import ConvState, IndexState, KVState, RecurrentState, State

__all__ = ["KnownState", "cache_of", "describe_states", "index_of", "known_states"]

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


def describe_states(
    states: Iterable[KnownState], offsets: Mapping[str, int], block_size: int, block_bytes: int,
    slot_bytes: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """For plan.json: `states` are the caches, `rolling` the rolling states; only where there are
    any, `chosen` says of how many positions a token reads a cache, `indexes` are the caches of
    index keys, `recurrent` the states of recurrences, and `slot_bytes` what they take of a
    sequence. `reach`, if attention does not reach back to all positions: which ones it does.
    offsets: bytes from a block's or a slot's start, by the name of the state's input.
    """
    states = list(states)
    reach = _reach(states, block_size)
    caches: list[dict[str, Any]] = []
    indexes: list[dict[str, Any]] = []
    rolling: list[dict[str, Any]] = []
    recurrent: list[dict[str, Any]] = []
    for state in states:
        if isinstance(state, RecurrentState):
            own = {"name": state.name, "size": state.size, "offset": offsets[state.name]}
            recurrent.append(own)
            continue
        dtype = str(state.dtype).removeprefix("torch.")
        if isinstance(state, KVState):
            caches.append(
                {
                    "name": state.name,
                    "heads": state.heads,
                    "head_dim": state.head_dim,
                    "value_dim": state.value_dim,
                    "dtype": dtype,
                    "mask": str(state.mask),
                    "first": state.mask.first,
                    "span": state.mask.tail,
                    "k_offset": offsets[state.inputs[0]],
                    "v_offset": offsets[state.inputs[1]],
                    "scale_offsets": [offsets[name] for name in state.inputs[2:]],
                    "bytes_per_token": state.bytes_per_token(),
                    **({"chosen": state.chosen} if state.chosen else {}),
                }
            )
        elif isinstance(state, IndexState):
            indexes.append(
                {
                    "name": state.name,
                    "heads": state.heads,
                    "head_dim": state.head_dim,
                    "dtype": dtype,
                    "span": state.mask.span,
                    "offset": offsets[state.name],
                    "bytes_per_token": state.bytes_per_token(),
                }
            )
        else:
            rolling.append(
                {
                    "name": state.name,
                    "kept": state.kept,
                    "channels": state.channels,
                    "dtype": dtype,
                    "offset": offsets[state.name],
                }
            )
    return {
        "block_size": block_size,
        "block_bytes": block_bytes,
        "states": caches,
        "rolling": rolling,
        **({"indexes": indexes} if indexes else {}),
        **({"recurrent": recurrent, "slot_bytes": slot_bytes} if recurrent else {}),
        **({} if reach is None else {"reach": reach}),
    }


def _reach(states: Iterable[KnownState], block_size: int) -> dict[str, int] | None:
    """What later steps may read of the caches: positions before `first`, and of the others those
    less than `span` before the token that reads. None: all of them, or there is no cache.

    Rolling states lie in the first block of a sequence, and recurrent ones where its number says.
    """
    first = span = 0
    for state in states:
        if isinstance(state, (ConvState, RecurrentState)):
            first = max(first, block_size)
        elif isinstance(state, IndexState) or state.mask.tail is None:
            return None
        else:
            first, span = max(first, state.mask.first), max(span, state.mask.tail)
    return {"first": first, "span": span} if span else None
