"""The memory of an engine, and how a step is described in it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from graphwright.runtime.artifact import Artifact
from graphwright.runtime.library import StepBuffers
from graphwright.runtime.memory import Memory
from graphwright.runtime.plan import Plan
from graphwright.runtime.steps import Step

__all__ = ["allocate_buffers", "describe", "load_weights", "planned_bytes"]


def planned_bytes(
    plan: Plan, max_sequences: int, blocks_each: int, rows: int | None = None, snapshots: int = 0
) -> dict[str, int]:
    """Bytes by what they are for, of an engine for so many sequences of so many blocks each.

    rows: the most that it samples; default: the most that a step may. snapshots: of states, which
    lie behind the blocks.
    """
    tokens = max(entry.max_tokens for entry in plan.entries.values())
    rows = rows or plan.rows
    tables = len(plan.pools) * plan.table_pitch(max_sequences, blocks_each)
    sizes = plan.pool_sizes(max_sequences, blocks_each)
    return {
        "weights": plan.weights_bytes,
        "arena": plan.arena_bytes,
        "kv": sum(plan.kv_bytes(max_sequences, sizes)) + snapshots * plan.snapshot_bytes,
        "logits": rows * plan.vocab_size * 4,
        "batch": 32
        + 16 * tokens
        + 4 * (max_sequences + 1 + tables + rows)
        + (8 * (tokens + rows) if plan.adapters else 0),
    }


def load_weights(artifact: Artifact, memory: Memory, mapped: bool) -> NDArray[np.uint8]:
    """The weights region where the file is mapped, or a copy of it."""
    weights = np.frombuffer(artifact.view("weights.bin"), np.uint8)
    artifact.will_need("weights.bin")
    if mapped:
        memory.count("weights", weights.nbytes)
        return weights
    copy = memory.allocate("weights", weights.nbytes)
    artifact.copy("weights.bin", copy.data)
    return copy


def allocate_buffers(
    plan: Plan, memory: Memory, weights: NDArray[np.uint8], max_sequences: int, blocks_each: int,
    rows: int | None = None, snapshots: int = 0,
) -> StepBuffers:  # fmt: skip
    """What `planned_bytes` counts, but for the weights."""
    tokens = max(entry.max_tokens for entry in plan.entries.values())
    rows = rows or plan.rows
    sizes = plan.pool_sizes(max_sequences, blocks_each)
    slots, blocks = plan.kv_bytes(max_sequences, sizes)
    batch = memory.allocate("batch", 8, np.int32)
    pitch = plan.table_pitch(max_sequences, blocks_each)
    if len(plan.pools) > 1:
        places = plan.pool_places(sizes)
        batch[4 : 4 + len(places)] = (pitch, *places[1:])
    return StepBuffers(
        batch=batch,
        tokens=memory.allocate("batch", tokens, np.int64),
        positions=memory.allocate("batch", tokens, np.int64),
        query_start=memory.allocate("batch", max_sequences + 1, np.int32),
        block_table=memory.allocate("batch", len(plan.pools) * pitch, np.int32),
        sample_rows=memory.allocate("batch", rows, np.int32),
        logits=memory.allocate("logits", rows * plan.vocab_size, np.float32).reshape(rows, -1),
        arena=memory.allocate("arena", plan.arena_bytes),
        weights=weights,
        kv=memory.allocate("kv", slots + blocks + snapshots * plan.snapshot_bytes)[slots:],
        adapters=memory.allocate("batch", tokens, np.int64) if plan.adapters else None,
        row_adapters=memory.allocate("batch", rows, np.int64) if plan.adapters else None,
    )


def describe(step: Step, buffers: StepBuffers, blocks_each: int) -> None:
    """Writes a step's batch into the buffers the compiled code reads."""
    token = row = 0
    pitch = int(buffers.batch[4])  # from a pool's block table to the next one's
    for number, chunk in enumerate(step.chunks):
        sequence, end = chunk.sequence, token + chunk.count
        if chunk.count == 1:  # numbers one by one take a tenth of the time of slices
            known, front = sequence.tokens, chunk.front
            buffers.tokens[token] = known[chunk.start] if front is None else -1 - front
            buffers.positions[token] = chunk.start
        else:
            stop = chunk.start + chunk.count
            buffers.tokens[token:end] = [*sequence.tokens[chunk.start : stop], *chunk.draft]
            buffers.positions[token:end] = np.arange(chunk.start, stop)
        buffers.query_start[number] = token
        assert sequence.table is not None
        place = number * blocks_each
        for table in sequence.table.tables:
            blocks = table.blocks
            buffers.block_table[place : place + len(blocks)] = blocks
            place += pitch
        if chunk.rows == 1:
            buffers.sample_rows[row] = end - 1
        else:
            buffers.sample_rows[row : row + chunk.rows] = np.arange(end - chunk.rows, end)
        token, row = end, row + chunk.rows
    count = len(step.chunks)
    buffers.query_start[count] = token
    buffers.batch[:4] = (token, count, blocks_each, row)
