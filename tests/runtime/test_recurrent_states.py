"""Slots for recurrent states: which block a sequence starts with, and the memory before block 0."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from toy_model import BLOCK, MAX_CONTEXT, PLAN, VOCAB, toy_logits, write_toy

from graphwright.inspector.text import memory_table, summary
from graphwright.runtime.artifact import Artifact
from graphwright.runtime.draws import Draw
from graphwright.runtime.engine import Engine
from graphwright.runtime.errors import ArtifactError
from graphwright.runtime.kv_cache import BlockPool, BlockTable
from graphwright.runtime.library import StepBuffers
from graphwright.runtime.memory import is_aligned
from graphwright.runtime.plan import Plan
from graphwright.runtime.sampling_params import SamplingParams

SLOT = 192  # bytes
RECURRENT: dict[str, Any] = {
    **PLAN["kv"], "block_bytes": 0, "rolling": [], "slot_bytes": SLOT,
    "recurrent": [
        {"name": "scan0", "size": 20, "offset": 0}, {"name": "scan1", "size": 16, "offset": 128},
    ],
}  # fmt: skip


@given(
    sequences=st.integers(1, 5),
    each=st.integers(1, 6),
    moves=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 24)), max_size=60),
)
def test_a_pool_never_runs_dry(sequences: int, each: int, moves: list[tuple[int, int]]) -> None:
    """Sequences grow as far as they may, end and start again, in any order."""
    pool = BlockPool(sequences * each, sequences)
    tables = [BlockTable(pool, 4, each) for _ in range(sequences)]
    for number, positions in moves:
        table = tables[number % sequences]
        if positions == 0:
            table.release()
        else:
            table.grow(min(positions, 4 * each))
        held = [table.blocks.tolist() for table in tables]
        used = [block for blocks in held for block in blocks]
        assert len(set(used)) == len(used) == pool.blocks - pool.free
        assert all(0 <= block < pool.blocks for block in used)
        assert all(blocks[0] < sequences for blocks in held if blocks)
        assert all(block >= sequences for blocks in held for block in blocks[1:])
    for table in tables:
        table.grow(4 * each)
    assert pool.free == 0


def test_what_the_plan_says_of_slots() -> None:
    plan = Plan.from_json(PLAN)
    assert plan.slot_bytes == 0 and plan.kv_bytes(3, [30]) == (0, 30 * BLOCK * 16)
    plan = Plan.from_json({**PLAN, "kv": RECURRENT})
    assert plan.slot_bytes == SLOT
    slots, blocks = plan.kv_bytes(3, [30])
    assert slots == 3 * SLOT and blocks > 0  # block 0 has an address, though it has no bytes
    both = Plan.from_json({**PLAN, "kv": {**RECURRENT, "block_bytes": 64}})
    assert both.kv_bytes(3, [30]) == (3 * SLOT, 30 * 64)
    with pytest.raises(ArtifactError, match="incomplete"):
        Plan.from_json({**PLAN, "kv": {**RECURRENT, "slot_bytes": "many"}})


class Recurrence:
    """A StepLibrary that keeps all that a sequence has said in its slot, before block 0."""

    takes_largest = draws = False
    overlaps = False

    def __init__(self) -> None:
        self.slots: set[int] = set()

    def run(
        self, entry: str, buffers: StepBuffers, draws: Sequence[Draw] = (), logits: bool = True
    ) -> NDArray[np.int32] | None:
        _, sequences, stride, rows = (int(each) for each in buffers.batch[:4])
        found = {}
        for b in range(sequences):
            slot = int(buffers.block_table[b * stride])
            self.slots.add(slot)
            state = self._slot(buffers.kv, slot)
            for t in range(*buffers.query_start[b : b + 2].tolist()):
                position = int(buffers.positions[t])
                if position == 0:
                    state[:] = 0
                assert (state[position:] == 0).all() and (state[:position] > 0).all()
                state[position] = int(buffers.tokens[t]) + 1
                found[t] = toy_logits((state[: position + 1] - 1).tolist())
        for row, token in enumerate(buffers.sample_rows[:rows].tolist()):
            buffers.logits[row] = found[token]
        return None

    @staticmethod
    def _slot(kv: NDArray[np.uint8], slot: int) -> NDArray[np.int16]:
        first = kv.ctypes.data - (slot + 1) * SLOT
        memory = (ctypes.c_int16 * (SLOT // 2)).from_address(first)
        return np.frombuffer(memoryview(memory), np.int16)


def test_each_running_sequence_has_a_slot_of_its_own(tmp_path: Path) -> None:
    """A model without any cache: its memory is that of the slots."""
    library = Recurrence()
    path = write_toy(tmp_path / "recurrent.gw", kv=RECURRENT)
    engine = Engine(path, library=library, max_sequences=3, context=MAX_CONTEXT)
    assert engine.memory.allocated == engine.memory.planned
    assert 3 * SLOT < engine.memory.planned["kv"] <= 3 * SLOT + 64
    draw = np.random.default_rng(0)
    prompts = [draw.integers(0, VOCAB, n).tolist() for n in (9, 1, 14, 5, 2, 30, 3)]
    outputs = engine.generate(prompts, SamplingParams(max_tokens=8, temperature=0))
    for prompt, output in zip(prompts, outputs, strict=True):
        tokens = list(prompt)
        for _ in range(8):
            tokens.append(int(toy_logits(tokens).argmax()))
        assert list(output.token_ids) == tokens[len(prompt) :]
    assert library.slots == {0, 1, 2}


@pytest.mark.parametrize("block_bytes", [0, 64])
def test_compiled_code_gets_an_aligned_address_behind_the_slots(
    tmp_path: Path, block_bytes: int
) -> None:
    seen: list[StepBuffers] = []

    class Recorder(Recurrence):
        def run(
            self, entry: str, buffers: StepBuffers, draws: Sequence[Draw] = (), logits: bool = True
        ) -> NDArray[np.int32] | None:
            seen.append(buffers)
            return super().run(entry, buffers, draws, logits)

    path = write_toy(tmp_path / "recurrent.gw", kv={**RECURRENT, "block_bytes": block_bytes})
    engine = Engine(path, library=Recorder(), max_sequences=2)
    engine.generate([[1, 2, 3]], SamplingParams(max_tokens=2))
    assert is_aligned(seen[0].kv) and seen[0].kv.nbytes >= 2 * 16 * block_bytes


def test_views_of_an_artifact_name_the_states(tmp_path: Path) -> None:
    artifact = Artifact.open(write_toy(tmp_path / "recurrent.gw", kv=RECURRENT))
    assert "192 bytes a sequence" in memory_table(artifact)
    assert "scan1" in memory_table(artifact) and "20 numbers" in memory_table(artifact)
    assert "2 recurrent a sequence" in summary(artifact)
    plain = Artifact.open(write_toy(tmp_path / "plain.gw"))
    assert "recurrent" not in memory_table(plain) + summary(plain)
