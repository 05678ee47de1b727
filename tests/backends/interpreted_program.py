"""A lowered program run by Triton's interpreter: batches of sequences in, logits out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from drawn_tokens import chosen_token

from graphwright.backends.rows import POOL_UNIT
from graphwright.backends.triton.build import LoweredProgram
from graphwright.backends.triton.interpret import run_launches
from graphwright.runtime.draws import LARGEST, draw_rule, random_word
from graphwright.runtime.sampling_params import SamplingParams

__all__ = ["InterpretedProgram"]

BLOCK = 16
RULE = SamplingParams(temperature=0.8, top_k=50, top_p=0.9).resolve({})
DRAWN = (random_word(0.7), *draw_rule(RULE, 1000))  # of each fourth row


class InterpretedProgram:
    """Holds the cache of up to `sequences` sequences of `context` tokens; blocks lie scattered. Of
    blocks that no later token reads, by the reach of their pool, nothing is left after a step.

    run: what runs launches in place of the interpreter, as run_launches takes it.
    """

    def __init__(
        self, lowered: LoweredProgram, *, sequences: int = 3, context: int = 64,
        run: Callable[..., Any] | None = None,
    ) -> None:  # fmt: skip
        self.lowered, self.run = lowered, run
        data = b"".join(bytes(piece) for piece in lowered.weights())
        assert len(data) == lowered.weight_bytes
        self.weights = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        self.row = context // BLOCK
        count = self.row * sequences
        pools = lowered.kv.block_bytes
        # 0xff bytes are NaN in every float type: what nobody has written must not be read.
        # Slots lie in front, as many as blocks: any block may be the first of a sequence here.
        self.slots = (count + 1) * lowered.kv.slot_bytes
        units = [-(-(count + 1) * size // POOL_UNIT) for size in pools]
        self.places = [sum(units[:pool]) for pool in range(len(pools))]
        size = self.slots + POOL_UNIT * self.places[-1] + (count + 1) * pools[-1]
        self.kv = torch.full((size,), 0xFF, dtype=torch.uint8)
        generator = torch.Generator().manual_seed(0)
        orders = [torch.randperm(count, generator=generator) + 1 for _ in pools]
        self.tables = [order.reshape(sequences, self.row).int() for order in orders]
        self.lengths = [0] * sequences

    def step(
        self,
        batch: Sequence[tuple[int, Sequence[int]]],
        rows: Sequence[int] | None = None,
        entry: str | None = None,
    ) -> torch.Tensor:
        """Appends tokens to sequences, (number, tokens) each; logits of `rows` (None: of all)."""
        tokens = [token for _, new in batch for token in new]
        positions = [self.lengths[s] + i for s, new in batch for i in range(len(new))]
        starts = [sum(len(new) for _, new in batch[:i]) for i in range(len(batch) + 1)]
        rows = list(range(len(tokens))) if rows is None else list(rows)
        most = self.lowered.plan["entries"]["decode"]["max_tokens"]
        entry = entry or ("decode" if len(tokens) <= most else "prefill")
        bucket = self.lowered.bucket(entry, len(tokens), len(rows))
        vocabulary = self.lowered.plan["vocab_size"]
        logits = torch.full((bucket.rows, vocabulary), 777.0)
        draws = [(DRAWN if row % 4 == 1 else LARGEST) for row in range(len(rows))]
        header = [len(tokens), len(batch), self.row, len(rows), 0, 0, 0, 0]
        tables = [torch.cat([table[s] for s, _ in batch]) for table in self.tables]
        tables = [table.reshape(-1) for table in tables]
        gap = torch.full((16,), 10**6, dtype=torch.int32)  # between two tables
        pitch = len(tables[0]) + len(gap)
        if len(tables) > 1:
            header[4 : 4 + len(tables)] = [pitch, *self.places[1:]]

        def padded(values: Sequence[int], count: int, dtype: torch.dtype) -> torch.Tensor:
            """Numbers that would lead far astray behind what a step may read."""
            return torch.tensor([*values, *[10**6] * (count - len(values))], dtype=dtype)

        inputs = {
            "batch": padded(header, 8, torch.int32),
            "tokens": padded(tokens, bucket.tokens, torch.int64),
            "positions": padded(positions, bucket.tokens, torch.int64),
            "query_start": padded(starts, bucket.tokens + 1, torch.int32),
            "block_table": torch.cat([tables[0], *(torch.cat([gap, each]) for each in tables[1:])]),
            "sample_rows": padded(rows, bucket.rows, torch.int32),
            "draws": padded(
                [word for draw in draws for word in draw], 4 * bucket.rows, torch.int64
            ),
        }
        regions = {
            **{f"host_{name}": given for name, given in inputs.items()},
            **{name: torch.full_like(given, 10**6) for name, given in inputs.items()},
            "logits": logits,
            "arena": torch.full((bucket.arena_bytes,), 0xFF, dtype=torch.uint8),
            "weights": self.weights,
            "kv": self.kv,
            "counters": torch.zeros(self.lowered.counter_bytes, dtype=torch.uint8),
            "chosen": torch.full((bucket.rows,), 777, dtype=torch.int32),
            "largest": torch.full((bucket.rows,), 777, dtype=torch.int32),
        }
        memory = {name: each.reshape(-1).view(torch.uint8) for name, each in regions.items()}
        for pool, place in enumerate(self.places[1:], 1):
            memory[f"block_table_{pool}"] = memory["block_table"][4 * pool * pitch :]
            memory[f"kv_{pool}"] = memory["kv"][self.slots + place * POOL_UNIT :]
        launches = [*bucket.launches, *bucket.largest, *bucket.drawn]
        blobs = self.lowered.blobs.offsets()
        run_launches(launches, bucket.size, memory, blobs, self.run, slots=self.slots)
        for sequence, new in batch:
            self.lengths[sequence] += len(new)
            for table, own in zip(self.tables, self.lowered.kv.pools, strict=True):
                if own.reach.span is not None:
                    end = max(0, (self.lengths[sequence] + 1 - own.reach.span) // BLOCK)
                    table[sequence, -(-own.reach.first // BLOCK) : end] = 0  # block 0 is nobody's
        assert (logits[len(rows) :] == 777.0).all()
        assert not regions["counters"].any(), "a launch has left counters behind"
        want = [chosen_token(logits[row].numpy(), draw) for row, draw in enumerate(draws)]
        for name in ("largest", "chosen"):
            assert regions[name].tolist()[: len(rows)] == want
        return logits[: len(rows)]
