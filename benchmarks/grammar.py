"""What a grammar costs a token: python benchmarks/grammar.py TOKENIZER.json [--tokens 2000]

Greedy choice from random logits of the tokenizer's vocabulary, alone and with what grammars allow.
Prints how long the grammar took to compile, and microseconds a token: median, mean and the 99th
percentile. A text that is complete is begun anew.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import numpy as np

from graphwright import Grammar, SamplingParams
from graphwright.runtime.grammar_matcher import Grammars
from graphwright.runtime.logit_changes import LogitChanges
from graphwright.runtime.sampler import Sampler
from graphwright.runtime.tokenizer import Tokenizer

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer", "minimum": 0},
        "email": {"type": "string", "pattern": "^[a-z]+@[a-z]+\\.(com|org)$"},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 20}},
    },
    "required": ["name", "age", "email", "tags"],
    "additionalProperties": False,
}
GRAMMARS = {
    "JSON object": Grammar.json_object(),
    "JSON schema": Grammar.json_schema(PERSON),
    "regex": Grammar.regex("([A-Z][a-z]+ [0-9]{1,4}, )*[A-Z][a-z]+"),
}
ROWS = 64


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("--tokens", type=int, default=2000)
    options = parser.parse_args()
    tokenizer = Tokenizer(options.tokenizer.read_bytes(), {})
    vocab = tokenizer.size
    logits = np.random.default_rng(0).standard_normal((ROWS, vocab)).astype(np.float32)
    logits *= 3
    for token in range(vocab):  # strings and lists come to an end
        if set(tokenizer.token_bytes(token)) & set(b'"]}'):
            logits[:, token] += 6
    grammars = Grammars(tokenizer, vocab, [])
    start = time.perf_counter()
    grammars.check(Grammar.choice(["a"]))
    print(f"vocabulary of {vocab}, read in {(time.perf_counter() - start) * 1e3:.0f} ms")
    print(f"{'':14}{'compile ms':>11}{'median µs':>11}{'mean µs':>9}{'99 % µs':>9}")
    for name, grammar in (("none", None), *GRAMMARS.items()):
        start = time.perf_counter()
        if grammar is not None:
            grammars.check(grammar)
        compiled = (time.perf_counter() - start) * 1e3
        took = sorted(each * 1e6 for each in _times(grammars, grammar, logits, options.tokens))
        print(f"{name:14}{compiled:11.1f}{statistics.median(took):11.0f}"
              f"{statistics.mean(took):9.0f}{took[int(len(took) * 0.99)]:9.0f}")  # fmt: skip


def _times(
    grammars: Grammars, grammar: Grammar | None, logits: np.ndarray, tokens: int
) -> list[float]:
    params = SamplingParams(temperature=0).resolve({})
    found: list[float] = []
    sampler = changes = None
    for number in range(tokens):
        if sampler is None or (changes is not None and changes.complete):
            if grammar is not None:
                changes = LogitChanges(params, logits.shape[1], grammars.matcher(grammar))
            sampler = Sampler(params, logits.shape[1], [], changes)
        start = time.perf_counter()
        sampler.choose(logits[number % len(logits)])
        found.append(time.perf_counter() - start)
    return found


if __name__ == "__main__":
    main()
