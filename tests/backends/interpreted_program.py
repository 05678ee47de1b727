"""A lowered program run by Triton's interpreter: batches of sequences in, logits out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from drawn_tokens import chosen_token

from graphwright.backends.triton.build import LoweredProgram
from graphwright.backends.triton.interpret import run_launches
from graphwright.runtime.draws import LARGEST, draw_rule, random_word
from graphwright.runtime.sampling_params import SamplingParams

__all__ = ["InterpretedProgram"]

BLOCK = 16
RULE = SamplingParams(temperature=0.8, top_k=50, top_p=0.9).resolve({})
DRAWN = (random_word(0.7), *draw_rule(RULE, 1000))  # of each fourth row


class InterpretedProgram:
    """Holds the cache of up to `sequences` sequences of `context` tokens; blocks lie scattered.

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
        # 0xff bytes are NaN in every float type: what nobody has written must not be read.
        # Slots lie in front, as many as blocks: any block may be the first of a sequence here.
        self.slots = (count + 1) * lowered.kv.slot_bytes
        size = self.slots + (count + 1) * lowered.kv.block_bytes
        self.kv = torch.full((size,), 0xFF, dtype=torch.uint8)
        order = torch.randperm(count, generator=torch.Generator().manual_seed(0)) + 1
        self.tables = order.reshape(sequences, self.row).int()
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

        def padded(values: Sequence[int], count: int, dtype: torch.dtype) -> torch.Tensor:
            """Numbers that would lead far astray behind what a step may read."""
            return torch.tensor([*values, *[10**6] * (count - len(values))], dtype=dtype)

        inputs = {
            "batch": padded(header, 8, torch.int32),
            "tokens": padded(tokens, bucket.tokens, torch.int64),
            "positions": padded(positions, bucket.tokens, torch.int64),
            "query_start": padded(starts, bucket.tokens + 1, torch.int32),
            "block_table": torch.cat([self.tables[s] for s, _ in batch]),
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
        launches = [*bucket.launches, *bucket.largest, *bucket.drawn]
        blobs = self.lowered.blobs.offsets()
        run_launches(launches, bucket.size, memory, blobs, self.run, slots=self.slots)
        for sequence, new in batch:
            self.lengths[sequence] += len(new)
        assert (logits[len(rows) :] == 777.0).all()
        assert not regions["counters"].any(), "a launch has left counters behind"
        want = [chosen_token(logits[row].numpy(), draw) for row, draw in enumerate(draws)]
        for name in ("largest", "chosen"):
            assert regions[name].tolist()[: len(rows)] == want
        return logits[: len(rows)]
