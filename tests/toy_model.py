"""A stand-in for compiled code: a model whose logits depend on every earlier token in its cache.

Each position's token and number are written to the paged cache, and the logits of a position are
pseudo-random numbers seeded by all that the cache holds up to it. A wrong block table, position or
chunk gives other logits.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from drawn_tokens import chosen_token
from numpy.typing import NDArray

from graphwright.runtime.artifact import ArtifactWriter
from graphwright.runtime.draws import LARGEST, Draw
from graphwright.runtime.engine import Engine
from graphwright.runtime.library import StepBuffers
from graphwright.runtime.plan import POOL_UNIT
from graphwright.runtime.variants import Variant

VOCAB = 97
BLOCK = 4  # positions
MAX_CONTEXT = 64


def toy_logits(history: Sequence[int]) -> NDArray[np.float32]:
    """Logits float32 [VOCAB] after `history`."""
    return np.random.default_rng(list(history)).standard_normal(VOCAB).astype(np.float32) * 3


def toy_greedy(prompt: Sequence[int], count: int) -> list[int]:
    """The `count` tokens that greedy decoding says after `prompt`."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(toy_logits(tokens).argmax()))
    return tokens[len(prompt) :]


Chooses: TypeAlias = Literal["none", "largest", "any"]


class ToyLibrary:
    """A StepLibrary. `steps` records (entry, tokens, sequences, rows) of every call, `asked`
    (draws, logits). chooses: which tokens it chooses by itself.
    """

    overlaps = False

    def __init__(self, chooses: Chooses = "none") -> None:
        self.takes_largest, self.draws = chooses != "none", chooses == "any"
        self.steps: list[tuple[str, int, int, int]] = []
        self.asked: list[tuple[tuple[Draw, ...], bool]] = []

    def logits_after(self, history: Sequence[int]) -> NDArray[np.float32]:
        """Logits float32 [VOCAB] after `history`."""
        return toy_logits(history)

    def visible(self, position: int) -> list[NDArray[np.int64]]:
        """Positions whose cache a token at `position` reads, in order, in each pool."""
        return [np.arange(position + 1)]

    def caches(self, buffers: StepBuffers) -> list[NDArray[np.int64]]:
        """[blocks, BLOCK, (token, position)] of each pool."""
        places = [0, *buffers.batch[5:]][: len(self.visible(0))]
        return [
            buffers.kv[place * POOL_UNIT :][: (len(buffers.kv) - place * POOL_UNIT) // 64 * 64]
            .view(np.int64)
            .reshape(-1, BLOCK, 2)
            for place in places
        ]

    def take(
        self, kv: NDArray[np.uint8], caches: Sequence[NDArray[np.int64]],
        tables: Sequence[NDArray[np.int32]], token: int, position: int,
    ) -> list[int]:  # fmt: skip
        """Puts a token into the caches, and says which ones it sees there, itself included."""
        history: list[int] = []
        for cache, table, past in zip(caches, tables, self.visible(position), strict=True):
            cache[table[position // BLOCK], position % BLOCK] = token, position
            seen = cache[table[past // BLOCK], past % BLOCK]
            assert (seen[:, 1] == past).all()
            history += seen[:, 0].tolist()
        return history

    def run(
        self, entry: str, buffers: StepBuffers, draws: Sequence[Draw] = (), logits: bool = True
    ) -> NDArray[np.int32] | None:
        tokens, sequences, stride, rows = (int(each) for each in buffers.batch[:4])
        caches, pitch = self.caches(buffers), int(buffers.batch[4])
        assert not buffers.batch[4 + (len(caches) if len(caches) > 1 else 0) :].any()
        limit = PLAN["entries"][entry]
        assert 0 < tokens <= limit["max_tokens"] and rows <= limit["max_rows"]
        self.steps.append((entry, tokens, sequences, rows))
        self.asked.append((tuple(draws), logits))
        assert len(draws) in (0, rows) and (self.takes_largest or not draws)
        assert self.draws or all(draw is LARGEST for draw in draws)
        starts = buffers.query_start[: sequences + 1]
        assert starts[0] == 0 and starts[-1] == tokens and (np.diff(starts) > 0).all()
        found = {}
        for b in range(sequences):
            for t in range(starts[b], starts[b + 1]):
                token, position = int(buffers.tokens[t]), int(buffers.positions[t])
                tables = [
                    buffers.block_table[pool * pitch + b * stride :][:stride]
                    for pool in range(len(self.visible(0)))
                ]
                found[t] = self.logits_after(self.take(buffers.kv, caches, tables, token, position))
        buffers.logits[:] = np.nan  # what was not asked for must not be read
        sampled = [found[t] for t in buffers.sample_rows[:rows].tolist()]
        for row in range(rows if logits else 0):
            buffers.logits[row] = sampled[row]
        if not draws:
            return None
        chosen = [chosen_token(each, draw) for each, draw in zip(sampled, draws, strict=True)]
        return np.array(chosen, np.int32)


PLAN: dict[str, Any] = {
    "entries": {
        "decode": {"max_tokens": 4, "max_rows": 4, "arena_bytes": 128, "buffers": []},
        "prefill": {"max_tokens": 10, "max_rows": 10, "arena_bytes": 4096, "buffers": []},
    },
    "kv": {"block_size": BLOCK, "block_bytes": BLOCK * 16, "states": []},
    "weights": {"bytes": 256, "bytes_per_token": 256, "entries": []},
    "vocab_size": VOCAB,
    "max_context": MAX_CONTEXT,
}


def word_tokenizer(bos: bool = True) -> str:
    """A byte-level tokenizer.json of VOCAB ids: <s>, </s>, printable ASCII, and the bytes of é."""
    names = ["<s>", "</s>", "Ġ", *(chr(code) for code in range(33, 125)), "Ã", "©"]
    assert len(names) == VOCAB
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    start = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    text = {"Sequence": {"id": "A", "type_id": 0}}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    definition = {
        "version": "1.0",
        "added_tokens": [
            {"id": i, "content": name, "special": True, **flags} for i, name in enumerate(names[:2])
        ],
        "pre_tokenizer": {**byte_level, "use_regex": True},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [start, text] if bos else [text],
            "pair": [start, text],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}},
        },
        "decoder": {**byte_level, "use_regex": True},
        "model": {"type": "BPE", "vocab": {n: i for i, n in enumerate(names)}, "merges": []},
    }
    return json.dumps(definition)


def write_toy(
    path: Path,
    *,
    tokenizer: str | None = None,
    generation_config: Any = None,
    chat_template: str | None = None,
    cpu_features: Sequence[str] = (),
    **changes: Any,
) -> Path:
    """An artifact at `path` with the toy's plan, `changes` applied to it."""
    with ArtifactWriter(path, variants=[Variant("toy", tuple(cpu_features))]) as writer:
        writer.add("lib/step.so", b"not a library")
        writer.add("weights.bin", bytes(range(256)))
        writer.add("plan.json", json.dumps({**PLAN, **changes}))
        if tokenizer is not None:
            writer.add("tokenizer.json", tokenizer)
            config = {"bos_token": "<s>", "eos_token": {"content": "</s>"}}
            writer.add("tokenizer_config.json", json.dumps(config))
        if chat_template is not None:
            writer.add("chat_template.jinja", chat_template)
        if generation_config is not None:
            writer.add("generation_config.json", json.dumps(generation_config))
    return path


def toy_engine(
    folder: Path, chooses: Chooses = "none", **options: Any
) -> tuple[Engine, ToyLibrary]:
    """An engine over a toy artifact without tokenizer, and the library that records its steps."""
    library = ToyLibrary(chooses)
    path = write_toy(folder / "toy.gw")
    return Engine(path, library=library, **options), library
